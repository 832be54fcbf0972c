"""Every field of a run with the paper's value where the paper gives one.

Other files in this folder call `get_config` and change what differs; the command line changes single fields:
`--config.dpo.beta=0.2`. "paper" below is Self-Rewarding Language Models (arXiv 2401.10020); where it is silent on what
it must have chosen too, the project decides and says "not stated in the paper". All else is this program's own.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.seed = 0  # every random choice of a run follows from it
    c.tracker = ""  # where curves go beside TensorBoard: "wandb", Weights & Biases (the extra `wandb`)

    c.model = ConfigDict()
    c.model.path = (
        ""  # M0: a folder, org/name of the hub, a .gguf, a run's model (runs/x/m2), or package:NAME with a GGUF
    )
    c.model.dtype = "bfloat16"  # of the computation; float32 on CPUs, which have no fast bfloat16
    c.model.param_dtype = "float32"  # of the weights that are trained
    c.model.adapter = ""  # a LoRA adapter in PEFT's format that belongs to M0: it is merged into it; "" for none
    c.model.chat_template = ""  # "": the tokenizer's own (plain if it has none); the name of one of several that it
    # brings ("default" also of the only one); "plain"; or a Jinja file
    c.model.date = (
        ""  # that a template is told which asks for today's, YYYY-MM-DD, so that prompts stay the same from day
    )
    # to day; "": as in the run that made the model, else 2024-07-26

    c.mesh = ConfigDict()  # devices along each axis; -1: all that are left
    c.mesh.data = 1
    c.mesh.fsdp = -1
    c.mesh.tensor = 1
    c.mesh.rules = ConfigDict()  # over which of them each logical axis is split, joined by +; "": whole on every device
    c.mesh.rules.batch = "data+fsdp"  # rows
    c.mesh.rules.embed = "fsdp"  # weights' width; gathered layer by layer
    c.mesh.rules.heads = "tensor"
    c.mesh.rules.kv_heads = "tensor"
    c.mesh.rules.mlp = "tensor"
    c.mesh.rules.vocab = "tensor"

    c.seeds = ConfigDict()  # "builtin", or rows: a file, a folder, hf:NAME, tfds:NAME/SPLIT
    c.seeds.ift = "builtin"  # instruction following: prompt, response (paper: 3,200 from Open Assistant)
    c.seeds.eft = "builtin"  # evaluation following: prompt, response, judgement (paper: 1,630); "" for none
    c.seeds.max_rows = 0  # of each set, 0 for all; the rows are chosen by the seed

    c.loop = ConfigDict()
    c.loop.iterations = 3  # the last model is M3 (paper)
    c.loop.score_last = True  # let the last model answer and judge too, so that the table says how it does

    c.sft = ConfigDict()  # M0 to M1
    c.sft.learning_rate = 5.5e-6  # paper
    c.sft.final_learning_rate = 1.1e-6  # paper
    c.sft.schedule = "cosine"  # to the final rate (paper); "linear": to it too; "constant": never leaves learning_rate
    c.sft.warmup_steps = 0  # not stated in the paper
    c.sft.batch_size = 16  # rows a step (paper)
    c.sft.micro_batch_size = 0  # rows at a time on all devices together, 0: the whole batch
    c.sft.epochs = 3  # not stated in the paper
    c.sft.dropout = 0.1  # paper; where it acts is not stated there: here on the two residual branches of every layer
    c.sft.max_length = 2048  # tokens of prompt and response; longer rows are dropped (not stated in the paper)
    c.sft.weight_decay = 0.0  # not stated in the paper
    c.sft.adam_b1 = 0.9  # not stated in the paper
    c.sft.adam_b2 = 0.95  # not stated in the paper
    c.sft.adam_eps = 1e-8  # not stated in the paper
    c.sft.clip_norm = 1.0  # of the global gradient norm, 0 for none (not stated in the paper)

    c.prompts = ConfigDict()
    c.prompts.source = "self_instruct"  # or rows with `prompt` (text or messages), split among iterations
    c.prompts.seeds = ""  # demonstrations to draw from; "": seeds.ift (paper); or rows with `prompt`
    c.prompts.template = ""  # what asks for a list of tasks: "": the package's text; or a text file
    c.prompts.generator = "base"  # "base": M0, the same in every iteration (paper); "current": the model in training
    c.prompts.count = 5000  # new prompts for M2 (not stated in the paper)
    c.prompts.growth = 1.0  # each later iteration's prompts, times those of the one before (paper's pairs: 1.75)
    c.prompts.demos_seed = 6  # demonstrations from the IFT seed (paper)
    c.prompts.demos_generated = 2  # demonstrations from prompts kept so far (paper)
    c.prompts.temperature = 0.6  # paper
    c.prompts.top_p = 0.9  # paper
    c.prompts.top_k = 0  # only the k most probable tokens; 0: all
    c.prompts.min_p = 0.0  # only tokens at least this share as probable as the most probable one; 0: all
    c.prompts.max_new_tokens = 128  # not stated in the paper
    c.prompts.rouge_threshold = 0.7  # a more similar one is rejected (Self-Instruct)
    c.prompts.min_words = 4  # Self-Instruct
    c.prompts.max_words = 150  # Self-Instruct
    c.prompts.keywords = (  # Self-Instruct: what a model of text can't do
        "image", "images", "graph", "graphs", "picture", "pictures", "file", "files",
        "map", "maps", "draw", "plot", "go to",
    )  # fmt: skip
    c.prompts.max_rounds = 1000  # of one batch each; then the stage stops with what it has

    c.respond = ConfigDict()
    c.respond.n = 4  # candidates a prompt (paper)
    c.respond.temperature = 0.7  # paper
    c.respond.top_p = 0.9  # paper
    c.respond.top_k = 0
    c.respond.min_p = 0.0
    c.respond.max_new_tokens = 1024  # not stated in the paper
    c.respond.min_new_tokens = 0  # no answer ends before so many tokens
    c.respond.stop = ()  # texts that end an answer, beside the model's end tokens; learnt as an end of turn
    c.respond.truncated = "drop"  # an answer cut by the limit: "drop" or "keep" it (not stated in the paper)

    c.judge = ConfigDict()
    c.judge.template = ""  # "": the package's additive five points; or a text file with {{prompt}} and
    # {{response}}, each once, that asks for a last line `Score: n` from 0 to 5, or declares {{scale: 1-10}}
    c.judge.by = "current"  # "current": M_t judges its own answers (paper); "m0", "m1": that one all
    c.judge.method = "sampled"  # how a score comes about:
    # "sampled": read from the judgement's text (paper); "completion": the model writes its reasons, then the most
    # probable score after `Score:` is taken, so every judgement has one; "expected": the mean of the model's
    # distribution over the scores 0 to 5 there
    # "function": no model judges, judge.function gives the score
    c.judge.function = ""  # module:name of a Python function, also in the current folder, or file.py:name; from a
    # prompt's messages and an answer's text it gives a score from 0 to 5, or None for an answer that can't be judged
    c.judge.rationale = True  # "expected" alone: reasons before the score; without, one prefill and no sampling
    c.judge.samples = 3  # judgements a response, averaged (paper)
    c.judge.temperature = 0.7  # paper
    c.judge.top_p = 0.9  # paper
    c.judge.top_k = 0
    c.judge.min_p = 0.0
    c.judge.max_new_tokens = 256  # not stated in the paper
    c.judge.min_parsed = 2  # judgements with a score that a response needs to be ranked (not stated in the paper)

    c.pairs = ConfigDict()
    c.pairs.rule = "best_worst"  # paper: highest against lowest score
    c.pairs.min_margin = 0.0  # a pair's scores must differ by more than this; 0 drops ties only (paper)

    c.dpo = ConfigDict()  # M1 to M2, M2 to M3
    c.dpo.data = "pairs"  # "pairs" (paper); "positives": SFT on answers of score 5 (the paper's comparison); or a file
    # of preferences, from which every M_t learns in the place of pairs of its own: nothing is answered or judged then
    c.dpo.loss_type = ("sigmoid",)  # paper; names as in TRL, several are added: sigmoid, sigmoid_norm, hinge, ipo,
    # robust, exo_pair, discopop, nca_pair, bco_pair, sppo_hard, apo_zero, apo_down, aot, aot_unpaired; without a
    # reference: sft, simpo, orpo; and kto, whose rows are single answers: both of a pair, or a file's with `label`
    c.dpo.loss_weights = ()  # one for each loss; (): 1 each
    c.dpo.beta = 0.1  # paper; ipo's tau, orpo's lambda
    c.dpo.label_smoothing = 0.0  # assumed share of flipped labels
    c.dpo.length_normalize = False  # log-probabilities divided by the answer's tokens (paper: summed)
    c.dpo.ld_alpha = 1.0  # weight of an answer's tokens beyond the length of the shorter one (LD-DPO); 1: all alike
    c.dpo.margin_scale = 0.0  # times the pair's score difference: by how much its rewards should differ (ODPO)
    c.dpo.simpo_gamma = 0.5  # simpo: by how much its rewards should differ, TRL's default
    c.dpo.discopop_tau = 0.05  # discopop: width of the gate between its two losses, TRL's default
    c.dpo.desirable_weight = 1.0  # kto: weight of chosen answers
    c.dpo.undesirable_weight = 1.0  # kto: weight of rejected answers
    c.dpo.init_from = "current"  # "current": M_t (paper); "m0"; "m1"
    c.dpo.reference = "current"  # "current": M_t (paper); "m0"; "m1"
    c.dpo.learning_rate = 1e-6  # paper
    c.dpo.final_learning_rate = 1e-7  # paper
    c.dpo.schedule = "cosine"  # paper
    c.dpo.warmup_steps = 0  # not stated in the paper
    c.dpo.batch_size = 16  # pairs a step (paper); answers for kto
    c.dpo.micro_batch_size = 0
    c.dpo.epochs = 1  # not stated in the paper
    c.dpo.dropout = 0.1  # paper; as sft.dropout
    c.dpo.max_length = 4096  # not stated in the paper
    c.dpo.weight_decay = 0.0  # not stated in the paper
    c.dpo.adam_b1 = 0.9  # not stated in the paper
    c.dpo.adam_b2 = 0.95  # not stated in the paper
    c.dpo.adam_eps = 1e-8  # not stated in the paper
    c.dpo.clip_norm = 1.0  # not stated in the paper

    c.training = ConfigDict()
    c.training.length_bucket = 128  # rows are padded to a multiple of this many tokens
    c.training.head_chunk = 512  # positions whose logits are in memory at a time
    c.training.remat = "block"  # what the backward pass computes anew: "none"; "block": all of a layer, from its input;
    # "dots": all but products with weights; "offload": as block, inputs kept in the host's memory
    c.training.attention = "auto"  # "splash" (TPU), "cudnn" (NVIDIA, bfloat16), "blocks" (anywhere); auto: by device
    c.training.pack = 0  # tokens of a row into which several texts are packed; 0: a row for each text
    c.training.share_prompt = False  # DPO: a pair's prompt once, with both answers after it in the same row
    c.training.optimizer = "adamw"  # not stated in the paper; "adafactor": factored second moments, no first ones, so
    # of all that is under sft.adam_* and dpo.adam_* nothing is used
    c.training.moments_dtype = "float32"  # AdamW's moments between steps, 8 bytes a weight together; "bfloat16": 4;
    # "int8": 2 and a little, in blocks
    c.training.ema_decay = 0.0  # a step: the model is the moving average of the weights; 0: the last weights (paper)
    c.training.max_skipped = 5  # steps in a row without a finite gradient, each skipped, that end the training

    c.lora = ConfigDict()  # of `sft` and `dpo`, not in the paper; the fresh adapter of M_t is merged into M_t's weights
    c.lora.rank = 0  # of each adapter; 0: all weights are trained (paper)
    c.lora.alpha = 16.0  # adapters are scaled by alpha / rank
    c.lora.use_rslora = False  # by alpha / sqrt(rank) instead (arXiv 2312.03732)
    c.lora.targets = ("q", "k", "v", "o", "gate", "up", "down")  # matrices that get an adapter
    c.lora.dropout = 0.0  # on each adapter's input, beside the stages' own

    c.generation = ConfigDict()
    c.generation.slots = 64  # rows decoded at a time, on all devices together; fewer where the cache doesn't hold them
    c.generation.cache_gib = 0.0  # memory for keys and values on each device; 0: what fits beside the weights
    c.generation.cache_dtype = ""  # of keys and values: "float32", "bfloat16", or "" for model.dtype
    c.generation.attention = "auto"  # of decoding: "pallas" (TPU), "xla" (anywhere); auto: by device
    c.generation.tensor = 0  # devices that share a model while it samples, 0: as mesh.tensor; the rest are replicas
    c.generation.length_bucket = 0  # prompts are padded to a multiple of this many tokens; 0: 16 on a CPU, 64 elsewhere
    c.generation.prefill_tokens = 0  # prompt tokens that one call runs through the model, in each replica; 0: 512 on a
    # CPU, 2048 elsewhere
    c.generation.score_rows = 16  # rows whose log-probabilities are computed at a time

    c.checkpoint = ConfigDict()
    c.checkpoint.every_steps = 200  # paper; also on SIGTERM
    c.checkpoint.keep = 1  # newest ones that are kept
    c.checkpoint.held_out = 0.0  # rows to score checkpoints on and not to train on: a number, or below 1 a share of
    # them; whole prompts, chosen by the seed; 0: none
    c.checkpoint.choose = "last"  # which checkpoint becomes the model: "last"; "loss": the lowest on held-out rows;
    # "accuracy": the highest rewards/accuracies (SFT has none and goes by loss); "win_rate": the one whose answers a
    # judge prefers to those of the others (paper: Claude 2)
    c.checkpoint.judge = "current"  # of win_rate, with the settings of judge.*: "current": the model that the training
    # began with; "m0", "m1" (for M1 itself M0); or any model by its path
    c.checkpoint.prompts = ""  # of win_rate: rows with `prompt`; "": those of the held-out rows, of SFT IFT's
    c.checkpoint.prompts_max = 253  # at most so many of them, drawn by the seed (paper)
    c.checkpoint.keep_best = 1  # best ones that are kept beside the newest, for "loss" and "accuracy"

    c.log = ConfigDict()
    c.log.tensorboard = True
    c.log.peak_tflops = 0.0  # bfloat16 TFLOP/s of one device, for MFU; 0: looked up by the device's name
    return c
