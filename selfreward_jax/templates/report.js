"use strict";
// The browser of samples. Texts come from a model: they are only ever set as textContent.
(() => {
  const all = JSON.parse(document.getElementById("samples-data").textContent);
  const byId = (id) => document.getElementById(id);
  const [where, why, outcome, order, search] = ["where", "why", "outcome", "order", "search"].map(byId);
  const stage = byId("sample"), count = byId("count");
  let found = [], at = 0, open = false;

  const make = (tag, name, text) => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const text = (content) => {
    const node = make("div", "text", content);
    node.dir = "auto";
    return node;
  };
  const plain = (x) => x.toLocaleString("en", { maximumFractionDigits: 2 });
  const length = (x) => x.answers.reduce((sum, a) => sum + a.tokens, 0) / (x.answers.length || 1);

  const orders = {
    drawn: null,
    "largest margin": (x) => -(x.margin ?? -1),
    "smallest margin": (x) => x.margin ?? 99,
    "judgements differ most": (x) => -x.disagreement,
    "longest answers": (x) => -length(x),
  };
  const fill = (select, first, values) => {
    for (const [value, label] of [["", first], ...[...new Set(values)].map((v) => [v, v])]) {
      const option = make("option", "", label);
      option.value = value;
      select.append(option);
    }
    select.parentNode.hidden = select.options.length < 3;
  };
  fill(where, "all iterations", all.map((x) => x.where));
  fill(why, "all reasons", all.map((x) => x.why || "all are shown"));
  fill(outcome, "all outcomes", all.map((x) => x.outcome || "not to be paired"));
  for (const name of Object.keys(orders)) order.append(make("option", "", name));

  for (const x of all) {
    x.reason = x.why || "all are shown";
    x.outcome ||= "not to be paired";
    x.words = [x.prompt, ...x.answers.map((a) => a.text)].join("\n").toLowerCase();
  }

  const judgement = (j) => {
    const item = make("li");
    item.append(make("span", "mark", j.score === null ? "no score" : plain(j.score)), text(j.text));
    return item;
  };

  const answer = (a, n) => {
    const card = make("article", "answer " + a.role);
    const head = make("header");
    head.append(make("b", "", "Answer " + (n + 1)));
    if (a.role) head.append(make("span", "tag " + a.role, a.role));
    if (a.dropped) head.append(make("span", "tag", "left out: " + a.dropped));
    const facts = [a.score === null ? "no score" : "score " + plain(a.score), plain(a.tokens) + " tokens"];
    if (a.cut) facts.push("cut by the limit");
    head.append(make("span", "facts", facts.join(" · ")));
    card.append(head, text(a.text));
    if (!a.judgements.length) return card;
    const details = make("details");
    details.open = open;
    const marks = a.judgements.map((j) => (j.score === null ? "–" : plain(j.score)));
    details.append(make("summary", "", "Judged " + marks.join(", ")));
    const list = make("ol");
    list.append(...a.judgements.map(judgement));
    details.append(list);
    card.append(details);
    return card;
  };

  const show = () => {
    count.textContent = found.length ? `${at + 1} of ${found.length}` : "none";
    byId("before").disabled = at <= 0;
    byId("next").disabled = at >= found.length - 1;
    stage.replaceChildren();
    if (!found.length) return stage.append(make("p", "hint", "No sample fits these choices."));
    const x = found[at];
    const line = [x.where, x.why, x.outcome === "pair" ? `margin ${plain(x.margin)}` : x.outcome].filter(Boolean);
    const prompt = make("div", "prompt");
    prompt.append(make("p", "facts", line.join(" · ")), text(x.prompt));
    const answers = make("div", "answers");
    answers.append(...x.answers.map(answer));
    stage.append(prompt, answers);
  };

  const choose = () => {
    const words = search.value.toLowerCase();
    found = all.filter(
      (x) =>
        (!where.value || x.where === where.value) &&
        (!why.value || x.reason === why.value) &&
        (!outcome.value || x.outcome === outcome.value) &&
        (!words || x.words.includes(words)),
    );
    const by = orders[order.value];
    if (by) found.sort((a, b) => by(a) - by(b));
    at = 0;
    show();
  };
  const go = (step) => {
    at = Math.max(0, Math.min(found.length - 1, at + step));
    show();
  };

  for (const select of [where, why, outcome, order]) select.addEventListener("change", choose);
  search.addEventListener("input", choose);
  byId("before").addEventListener("click", () => go(-1));
  byId("next").addEventListener("click", () => go(1));
  byId("open").addEventListener("change", (event) => { open = event.target.checked; show(); });
  byId("browser").addEventListener("keydown", (event) => {
    if (["SELECT", "INPUT"].includes(event.target.tagName)) return;
    if (event.key === "ArrowLeft") go(-1);
    if (event.key === "ArrowRight") go(1);
  });
  byId("browser").hidden = false;
  choose();
})();
