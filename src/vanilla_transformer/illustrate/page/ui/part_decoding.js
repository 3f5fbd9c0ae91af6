// Part 6: greedy search next to beam search.

import { button, slider } from "#page/ui/controls.js";
import { h, redraw } from "#page/ui/dom.js";
import { formula } from "#page/ui/formulas.js";
import { shorten, token, visible } from "#page/ui/labels.js";
import { fixed, probability } from "#page/ui/numbers.js";
import { block, section, slot } from "#page/ui/section.js";
import { scrollable } from "#page/ui/strips.js";
import { barCell, table } from "#page/ui/tables.js";
import { treePicture } from "#page/ui/tree.js";
import { lengthPenaltyOf } from "#page/engine/search.js";

const MOST_BEAMS = 8;
const MOST_PENALTY = 2;
const MOST_DECIMALS = 6; // of a length penalty

export function decodingPart(ctx) {
  const { store, texts } = ctx;
  const [greedy, beams, tree, reason, example, controls] = [
    slot(),
    slot(),
    slot(),
    slot("reason"),
    slot(),
    slot("controls sliders"),
  ];
  const element = section(
    "decoding",
    texts,
    controls,
    block("decoding.greedy", texts, { formulas: formula("greedy", ctx) }, greedy),
    block("decoding.beam", texts, { formulas: [formula("beamSearch", ctx), formula("lengthPenalty", ctx)] }, beams),
    block("decoding.tree", texts, { wide: true }, treeLegend(texts), tree),
    block("decoding.differ", texts, {}, reason, example),
  );
  return {
    element,
    uses: ["text", "numBeams", "lengthPenalty", "numResults"],
    draw(changed) {
      const found = { greedy: store.greedy(), beam: store.beam() };
      redraw(controls, searchControls(ctx));
      if (changed.has("text")) redraw(greedy, greedyTable(ctx, found.greedy));
      redraw(beams, resultTable(ctx, found.beam));
      redraw(
        tree,
        treePicture(found.beam, {
          texts,
          pieceOf: pieceOf(store),
          describe: describer(ctx, found.beam),
          label: texts.t("decoding.tree.label"),
        }),
        h("p", { class: "remark" }, stopReason(ctx, found.beam)),
      );
      redraw(reason, differencePicture(ctx, found));
      redraw(example, exampleBox(ctx));
    },
  };
}

const pieceOf = (store) => (id) => store.tokenizer.pieces([id])[0];
const textOf = (store, ids) => h("bdi", { class: "translation" }, store.tokenizer.decode(ids) || "∅");

// How many decimals a value has, one at least.
function decimalsOf(value) {
  let decimals = 1;
  while (decimals < MOST_DECIMALS && Number(value.toFixed(decimals)) !== value) decimals += 1;
  return decimals;
}

// The sliders reach the settings of the model's generation config, wherever these are.
function searchControls({ store, texts, set, payload }) {
  const { numBeams, lengthPenalty, numResults } = store.choices;
  const own = payload.generation;
  const decimals = decimalsOf(own.length_penalty);
  const mostBeams = Math.max(MOST_BEAMS, own.num_beams);
  return [
    slider(texts.t("decoding.numBeams"), { min: 1, max: mostBeams, value: numBeams, key: "numBeams" }, (value) =>
      set({ numBeams: value, numResults: Math.min(numResults, value) }),
    ),
    slider(
      texts.t("decoding.lengthPenalty"),
      {
        min: Math.min(0, own.length_penalty),
        max: Math.max(MOST_PENALTY, own.length_penalty),
        step: 10 ** -decimals,
        value: lengthPenalty,
        format: (value) => fixed(value, decimals),
        key: "lengthPenalty",
      },
      (value) => set({ lengthPenalty: Number(value.toFixed(decimals)) }),
    ),
    slider(texts.t("decoding.numResults"), { min: 1, max: numBeams, value: numResults, key: "numResults" }, (value) =>
      set({ numResults: value }),
    ),
  ];
}

// The nodes from the first token to a hypothesis' last.
function pathTo(node, nodes) {
  const path = [];
  for (let at = node; at && at.parent !== null; at = nodes[at.parent]) path.unshift(at);
  return path;
}

function greedyTable({ store, texts }, { hypotheses, nodes }) {
  const [hypothesis] = hypotheses;
  const lines = pathTo(nodes[hypothesis.node], nodes).map((node, i) => {
    const own = Math.exp(node.logProb - nodes[node.parent].logProb);
    return {
      head: [h("span", { class: "index" }, String(i + 1)), " ", token(pieceOf(store)(node.token))],
      cells: [barCell(probability(own), own, "weight"), h("td", {}, probability(node.logProb))],
    };
  });
  return [
    h("p", { class: "result" }, textOf(store, hypothesis.ids)),
    table(
      texts.t("decoding.greedy.table"),
      [texts.t("table.token"), texts.t("table.probability"), texts.t("decoding.sum")],
      lines,
    ),
  ];
}

function resultTable({ store, texts }, { hypotheses }) {
  const { lengthPenalty, numBeams } = store.choices;
  const alpha = numBeams > 1 ? lengthPenalty : 0;
  const lines = hypotheses.map(({ ids, logProb, length, score }, i) => ({
    head: [h("span", { class: "index" }, String(i + 1)), " ", textOf(store, ids)],
    selected: i === 0,
    cells: [
      h("td", {}, String(length)),
      h("td", {}, probability(logProb)),
      h("td", {}, probability(lengthPenaltyOf(length, alpha))),
      h("td", {}, h("b", {}, probability(score))),
    ],
  }));
  return [
    h("p", { class: "result" }, textOf(store, hypotheses[0].ids)),
    scrollable(
      texts,
      texts.t("decoding.beam.table"),
      table(
        texts.t("decoding.beam.table"),
        [
          texts.t("decoding.hypothesis"),
          texts.t("decoding.length"),
          "log P",
          texts.t("decoding.divisor"),
          texts.t("decoding.score"),
        ],
        lines,
        "results",
      ),
      "results",
    ),
    numBeams === 1 && h("p", { class: "remark" }, texts.t("decoding.oneBeam")),
  ];
}

function treeLegend(texts) {
  const entry = (kind, sign) =>
    h("li", {}, h("span", { class: `node-sample ${kind}`, "aria-hidden": "true" }, sign), texts.t(`tree.${kind}`));
  return h(
    "ul",
    { class: "legend" },
    entry("alive", ""),
    entry("finished", "✓"),
    entry("dropped", "✕"),
    entry("best", ""),
  );
}

// The text of a box of the tree.
function describer({ store, texts }, { nodes }) {
  const alpha = store.choices.numBeams > 1 ? store.choices.lengthPenalty : 0;
  return (kind, node) => {
    if (kind === "start") return texts.t("tree.describe.start");
    const ids = [...pathTo(nodes[node.parent], nodes), node].map(({ token: id }) => id);
    const text = shorten(store.tokenizer.decode(ids) || visible(pieceOf(store)(node.token)), 80);
    const values = {
      text,
      logProb: probability(node.logProb),
      own: probability(Math.exp(node.logProb - nodes[node.parent].logProb)),
    };
    if (kind !== "finished") return texts.t(`tree.describe.${kind}`, values);
    return texts.t("tree.describe.finished", {
      ...values,
      divisor: probability(lengthPenaltyOf(ids.length, alpha)),
      score: probability(node.score),
    });
  };
}

function stopReason({ texts }, { steps }) {
  const { canImprove, bestPossible, toBeat, alive } = steps.at(-1);
  if (canImprove || alive.length === 0) return texts.t("tree.stop.limit");
  return texts.t("tree.stop.bound", { possible: probability(bestPossible), worst: probability(toBeat) });
}

// Where the two hypotheses part, and why the search prefers the one or the other.
function compare({ store }, { greedy, beam }) {
  const [one, other] = [greedy.hypotheses[0], beam.hypotheses[0]];
  const fork = one.ids.findIndex((id, i) => id !== other.ids[i]);
  if (fork < 0) return null;
  const { lengthPenalty, numBeams } = store.choices;
  const alpha = numBeams > 1 ? lengthPenalty : 0;
  const own = ({ nodes }, hypothesis) => {
    const node = pathTo(nodes[hypothesis.node], nodes)[fork];
    return Math.exp(node.logProb - nodes[node.parent].logProb);
  };
  const greedyScore = one.logProb / lengthPenaltyOf(one.length, alpha);
  const kind = other.logProb > one.logProb ? "likelier" : other.score > greedyScore ? "longer" : "worse";
  return { one, other, fork, kind, greedyScore, probabilities: [own(greedy, one), own(beam, other)] };
}

function differencePicture(ctx, found) {
  const { store, texts } = ctx;
  const difference = compare(ctx, found);
  if (!difference) return h("p", { class: "remark" }, texts.t("decoding.same"));
  const { one, other, fork, kind, greedyScore, probabilities } = difference;
  const pieces = (ids) =>
    h(
      "span",
      { class: "swap-tokens" },
      store.tokenizer
        .pieces(ids)
        .map((piece, i) => h("span", { class: i === fork ? "swap-token moved" : "swap-token" }, token(piece))),
    );
  const line = (name, ids, logProb, length, score) => ({
    head: h("div", {}, h("b", {}, name), pieces(ids)),
    cells: [h("td", {}, String(length)), h("td", {}, probability(logProb)), h("td", {}, probability(score))],
  });
  const values = {
    place: String(fork + 1),
    greedyToken: token(pieceOf(store)(one.ids[fork])),
    beamToken: token(pieceOf(store)(other.ids[fork])),
    greedyProbability: h("b", {}, probability(probabilities[0])),
    beamProbability: h("b", {}, probability(probabilities[1])),
    greedySum: h("b", {}, probability(one.logProb)),
    beamSum: h("b", {}, probability(other.logProb)),
    greedyScore: h("b", {}, probability(greedyScore)),
    beamScore: h("b", {}, probability(other.score)),
    greedyLength: String(one.length),
    beamLength: String(other.length),
  };
  return [
    scrollable(
      texts,
      texts.t("decoding.compare"),
      table(
        texts.t("decoding.compare"),
        [texts.t("decoding.hypothesis"), texts.t("decoding.length"), "log P", texts.t("decoding.score")],
        [
          line(texts.t("decoding.byGreedy"), one.ids, one.logProb, one.length, greedyScore),
          line(texts.t("decoding.byBeam"), other.ids, other.logProb, other.length, other.score),
        ],
        "compare",
      ),
      "compare",
    ),
    h(
      "p",
      { class: "reason-text" },
      texts.rich("decoding.reason.fork", values),
      " ",
      texts.rich(`decoding.reason.${kind}`, values),
    ),
  ];
}

function exampleBox({ store, texts, write, set, payload }) {
  const example = payload.searchExample;
  if (!example) return h("p", { class: "remark" }, texts.t("decoding.noExample"));
  const load = () => {
    set({
      numBeams: example.numBeams,
      lengthPenalty: example.lengthPenalty,
      numResults: Math.min(store.choices.numResults, example.numBeams),
    });
    write(example.source);
  };
  const shown = store.text === example.source;
  return h(
    "div",
    { class: "example" },
    h("p", {}, texts.t(shown ? "decoding.exampleShown" : "decoding.example")),
    h("p", {}, h("bdi", { class: "quoted" }, example.source)),
    !shown && button(texts.t("decoding.load"), load, { key: "load-example" }),
  );
}
