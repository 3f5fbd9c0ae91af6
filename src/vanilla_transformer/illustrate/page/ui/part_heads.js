// Part 3: all heads of a layer side by side, and what becomes of them.

import { choice } from "#page/ui/controls.js";
import { h, redraw } from "#page/ui/dom.js";
import { fit } from "#page/ui/fit.js";
import { formula } from "#page/ui/formulas.js";
import { spoken, token } from "#page/ui/labels.js";
import { linesPicture } from "#page/ui/lines.js";
import { matrixPicture } from "#page/ui/matrix.js";
import { argmax, count, probability, row } from "#page/ui/numbers.js";
import { block, numberChoice, section, slot, wordChoice } from "#page/ui/section.js";
import { strips } from "#page/ui/strips.js";

export function headsPart(ctx) {
  const { store, texts } = ctx;
  const { config } = store.model;
  const heads = config.encoder_attention_heads;
  const values = { heads: count(heads), d: count(config.d_model), dk: count(config.d_model / heads) };
  const controls = slot("controls sticky-controls");
  const [pictures, joined] = [slot("heads"), slot()];
  const element = section(
    "heads",
    texts,
    controls,
    block("heads.side", texts, { values, wide: true }, pictures),
    block("heads.concatenation", texts, { values, formulas: formula("multiHead", ctx) }, joined),
  );
  return {
    element,
    uses: ["text", "word", "part3Layer", "view"],
    draw() {
      redraw(
        controls,
        wordChoice(ctx, "heads"),
        numberChoice(ctx, "part3Layer", "choose.layer", config.encoder_layers),
        viewChoice(ctx),
      );
      const attention = store.encoded.layers[store.choices.part3Layer].selfAttention;
      redraw(
        pictures,
        headPictures(ctx, attention.heads, {
          from: store.pieces,
          to: store.pieces,
          selected: store.choices.word,
          choose: (word) => ctx.set({ word }),
          key: "heads",
        }),
      );
      redraw(joined, joinedPicture(ctx, attention));
    },
  };
}

export function viewChoice({ store, texts, set }) {
  const options = ["lines", "matrix"].map((view) => ({ value: view, label: texts.t(`heads.${view}`) }));
  return choice(texts.t("heads.view"), options, store.choices.view, (view) => set({ view }), { key: "view" });
}

// One picture for each head, and one sentence about the selected row.
export function headPictures({ store, texts }, heads, { from, to, selected, choose, key }) {
  return heads.map((head, i) => {
    const weights = row(head.weights, selected);
    const most = argmax(weights);
    const label = texts.t("heads.looks", {
      head: i + 1,
      word: spoken(from[selected]),
      other: spoken(to[most]),
      weight: probability(weights[most]),
    });
    const picture = fit(`${key}-${heads.length}`, h("div", { class: "head-picture" }), (width) =>
      store.choices.view === "lines"
        ? linesPicture(head.weights, width, { fromPieces: from, toPieces: to, selected, choose, label })
        : matrixPicture(head.weights, width, {
            texts,
            rowPieces: from,
            colPieces: to,
            selected,
            choose,
            label,
            largestValue: 1,
            format: probability,
            key: `${key}-matrix-${i}`,
            describe: (r, c, value) => texts.t("heads.value", { word: spoken(from[r]), other: spoken(to[c]), value }),
          }),
    );
    return h(
      "figure",
      { class: "head" },
      h(
        "figcaption",
        {},
        h("b", {}, texts.t("heads.head", { head: i + 1 })),
        h("span", {}, texts.rich("heads.most", { other: token(to[most], 12), weight: probability(weights[most]) })),
      ),
      picture,
    );
  });
}

function joinedPicture({ store, texts }, attention) {
  const { word } = store.choices;
  const name = spoken(store.pieces[word]);
  const width = attention.heads[0].context.cols;
  const boundaries = attention.heads.slice(1).map((_, i) => (i + 1) * width);
  const contexts = attention.heads.map((head, i) => ({
    label: [h("b", { class: "symbol z" }, "z"), " ", texts.t("heads.head", { head: i + 1 })],
    name: texts.t("heads.head", { head: i + 1 }),
    values: row(head.context, word),
  }));
  const concatenated = row(attention.concatenated, word);
  const output = row(attention.output, word);
  return [
    h("p", { class: "remark" }, texts.rich("heads.of", { word: token(store.pieces[word]) })),
    strips(contexts, {
      texts,
      label: texts.t("heads.contexts", { word: name }),
      key: "head-contexts",
      table: false,
      hint: true,
    }),
    strips([{ label: "Concat", name: "Concat", values: concatenated, boundaries, strong: true }], {
      texts,
      label: texts.t("heads.concatenated", { count: count(concatenated.length) }),
      key: "head-concatenated",
      table: false,
    }),
    strips([{ label: ["× W", h("sup", {}, "O")], name: texts.t("heads.output"), values: output, strong: true }], {
      texts,
      label: texts.t("heads.output"),
      key: "head-output",
    }),
  ];
}
