"""A conversation with a model in a terminal."""

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.terminal import tell as told
from selfreward_jax.engine.generate import Engine, EngineSettings, Request
from selfreward_jax.engine.sampling import SamplingSettings
from selfreward_jax.llama.load import Model


def converse(
    model: Model, *, temperature: float, top_p: float, max_new_tokens: int, seed: int, ask=input, tell=told
) -> None:
    """Reads a line, prints the answer, until `/exit` or the end of the input; `/new` forgets what was said."""
    if max_new_tokens >= model.context:
        raise UserError(f"--max_new_tokens={max_new_tokens}: the model's context is {model.context} tokens.")
    settings = SamplingSettings(temperature, top_p, max_new_tokens)
    engine = Engine(model, EngineSettings(slots=1))
    tell(f"{model.name}. /new begins anew, /exit ends.")
    messages: list[dict[str, str]] = []
    turn = 0
    while True:
        try:
            text = ask("you> ").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if text in ("/exit", "/quit"):
            return
        if text == "/new":
            messages = []
            continue
        if not text:
            continue
        messages.append({"role": "user", "content": text})
        ids = model.chat.prompt_ids(messages)
        while len(ids) + max_new_tokens > model.context and len(messages) > 1:
            messages = messages[2:]  # the oldest question and answer
            ids = model.chat.prompt_ids(messages)
        if len(ids) + max_new_tokens > model.context:
            tell(f"(that is {len(ids)} tokens; at most {model.context - max_new_tokens} fit)")
            messages.pop()
            continue
        turn += 1
        request = Request(f"chat/{turn}", tuple(ids))
        (answer,) = engine.run([request], 1, settings, seed=seed, purpose="chat")
        messages.append({"role": "assistant", "content": answer.text})
        tell(f"{answer.text}" + (" [...]" if answer.stop_reason == "length" else "") + "\n")
