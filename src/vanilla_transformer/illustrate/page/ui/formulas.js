// The paper's formulas in MathML, each with a button that opens the source of the function that computes it.

import { h, math } from "#page/ui/dom.js";
import { showSource } from "#page/ui/sources.js";

const i = (text) => math("mi", {}, text);
const upright = (text) => math("mi", { mathvariant: "normal" }, text);
const n = (text) => math("mn", {}, text);
const o = (text) => math("mo", {}, text);
const word = (text) => math("mtext", {}, text);
const row = (...parts) => math("mrow", {}, parts);
const sub = (base, below) => math("msub", {}, base, below);
const sup = (base, above) => math("msup", {}, base, above);
const subsup = (base, below, above) => math("msubsup", {}, base, below, above);
const over = (above, below) => math("mfrac", {}, above, below);
const root = (...parts) => math("msqrt", {}, parts);
const paren = (...parts) => row(o("("), ...parts, o(")"));
const call = (name, ...parts) => row(upright(name), paren(...parts));
const sum = (below) => math("munder", {}, o("∑"), below);
const lines = (...rows) =>
  math(
    "mtable",
    { class: "stacked", displaystyle: "true" },
    rows.map((parts) => math("mtr", {}, math("mtd", {}, parts))),
  );
const dModel = () => sub(i("d"), word("model"));
const dKey = () => sub(i("d"), i("k"));

const FORMULAS = {
  embedding: ({ scale_embedding }) =>
    row(
      sub(i("x"), i("t")),
      o("="),
      sub(i("E"), sub(i("w"), i("t"))),
      scale_embedding && row(o("·"), root(dModel())),
      o("+"),
      sub(i("PE"), i("t")),
    ),
  positions: ({ position_convention }) => {
    const width = () => (position_convention === "fairseq" ? paren(dModel(), o("−"), n("2")) : dModel());
    const angle = () => over(i("t"), sup(n("10000"), row(n("2"), i("i"), o("/"), width())));
    return lines(
      [sub(i("PE"), row(i("t"), o(","), n("2"), i("i"))), o("="), upright("sin"), angle()],
      [sub(i("PE"), row(i("t"), o(","), n("2"), i("i"), o("+"), n("1"))), o("="), upright("cos"), angle()],
    );
  },
  attention: () =>
    row(
      call("Attention", i("Q"), o(","), i("K"), o(","), i("V")),
      o("="),
      upright("softmax"),
      paren(over(row(i("Q"), sup(i("K"), upright("T"))), root(dKey()))),
      i("V"),
    ),
  softmax: () =>
    row(
      sub(upright("softmax"), i("j")),
      paren(i("s")),
      o("="),
      over(sup(i("e"), sub(i("s"), i("j"))), row(sum(i("k")), sup(i("e"), sub(i("s"), i("k"))))),
    ),
  multiHead: () =>
    lines(
      [call("MultiHead", i("Q"), o(","), i("K"), o(","), i("V"))],
      [
        o("="),
        call("Concat", sub(word("head"), n("1")), o(","), o("…"), o(","), sub(word("head"), i("h"))),
        sup(i("W"), i("O")),
      ],
    ),
  feedForward: ({ activation_function: activation }) =>
    row(
      call("FFN", i("x")),
      o("="),
      activation === "relu"
        ? row(call("max", n("0"), o(","), i("x"), sub(i("W"), n("1")), o("+"), sub(i("b"), n("1"))))
        : call(activation, i("x"), sub(i("W"), n("1")), o("+"), sub(i("b"), n("1"))),
      sub(i("W"), n("2")),
      o("+"),
      sub(i("b"), n("2")),
    ),
  residual: () => row(i("y"), o("="), call("LayerNorm", i("x"), o("+"), call("Sublayer", i("x")))),
  layerNorm: () =>
    row(call("LayerNorm", i("x")), o("="), over(row(i("x"), o("−"), i("μ")), i("σ")), o("⊙"), i("γ"), o("+"), i("β")),
  mask: () =>
    row(
      sub(i("s"), row(i("t"), o(","), i("j"))),
      o("="),
      o("−"),
      o("∞"),
      math("mspace", { width: "1em" }),
      i("j"),
      o(">"),
      i("t"),
    ),
  encoderAttention: () =>
    lines(
      [call("Attention", i("Q"), o(","), sub(i("K"), word("enc")), o(","), sub(i("V"), word("enc")))],
      [
        o("="),
        upright("softmax"),
        paren(over(row(i("Q"), subsup(i("K"), word("enc"), upright("T"))), root(dKey()))),
        sub(i("V"), word("enc")),
      ],
    ),
  output: () =>
    row(
      i("P"),
      paren(sub(i("y"), row(i("t"), o("+"), n("1")))),
      o("="),
      call("softmax", sub(i("h"), i("t")), sup(i("W"), upright("T"))),
    ),
  greedy: () =>
    row(
      sub(i("y"), i("t")),
      o("="),
      math("munder", {}, upright("argmax"), i("w")),
      i("P"),
      paren(i("w"), o("|"), sub(i("y"), row(o("<"), i("t"))), o(","), i("x")),
    ),
  beamSearch: () =>
    row(
      upright("log"),
      i("P"),
      paren(i("y"), o("|"), i("x")),
      o("="),
      sum(i("t")),
      upright("log"),
      i("P"),
      paren(sub(i("y"), i("t")), o("|"), sub(i("y"), row(o("<"), i("t"))), o(","), i("x")),
    ),
  lengthPenalty: () =>
    row(
      i("s"),
      paren(i("y")),
      o("="),
      over(
        row(upright("log"), i("P"), paren(i("y"), o("|"), i("x"))),
        sup(paren(over(row(n("5"), o("+"), o("|"), i("y"), o("|")), n("6"))), i("α")),
      ),
    ),
  loss: () => row(i("L"), o("="), o("−"), sum(i("w")), i("q"), paren(i("w")), upright("log"), i("p"), paren(i("w"))),
};

// The formula of a key of payload.sources as the model computes it, and what opens its source.
export function formula(key, { texts, payload }) {
  const drawn = FORMULAS[key] && math("math", { display: "block" }, FORMULAS[key](payload.config));
  return h(
    "div",
    { class: "formula" },
    drawn && h("div", { class: "scroll-math" }, drawn),
    sourceButton(key, { texts, payload }),
  );
}

// A button with the name of the function that computes `key`; null where the page has no source for it.
export function sourceButton(key, { texts, payload }) {
  const source = payload.sources?.[key];
  if (!source) return null;
  return h(
    "button",
    {
      type: "button",
      class: "source",
      "data-key": `source-${key}`,
      "data-source": key,
      "aria-haspopup": "dialog",
      onclick: () => showSource(source, texts),
    },
    h("span", { "aria-hidden": "true" }, "{ } "),
    h("span", { class: "visually-hidden" }, `${texts.t("source.open")}: `),
    h("code", {}, source.name),
  );
}
