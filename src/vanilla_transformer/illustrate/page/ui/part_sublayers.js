// Part 4: feed-forward network, residual connection and layer normalization.

import { h, redraw } from "#page/ui/dom.js";
import { formula } from "#page/ui/formulas.js";
import { spoken, token } from "#page/ui/labels.js";
import { cosine, count, deviation, mean, norm, number, row } from "#page/ui/numbers.js";
import { block, numberChoice, section, slot, wordChoice } from "#page/ui/section.js";
import { strips } from "#page/ui/strips.js";
import { barCell, table } from "#page/ui/tables.js";

const SWITCHES_OFF = ["relu", "relu2", "relu6"]; // activations that are 0 wherever they are not positive

export function sublayersPart(ctx) {
  const { store, texts } = ctx;
  const { config } = store.model;
  const values = {
    d: count(config.d_model),
    ffn: count(config.encoder_ffn_dim),
    activation: config.activation_function,
  };
  const controls = slot("controls sticky-controls");
  const [first, hidden, second, changes] = [slot(), slot(), slot(), slot()];
  const element = section(
    "sublayers",
    texts,
    controls,
    block(
      "sublayers.residual",
      texts,
      { values, formulas: [formula("residual", ctx), formula("layerNorm", ctx)] },
      first,
    ),
    block("sublayers.feedForward", texts, { values, formulas: formula("feedForward", ctx) }, hidden, second),
    block("sublayers.change", texts, { values }, changes),
  );
  return {
    element,
    uses: ["text", "word", "part4Layer"],
    draw() {
      redraw(
        controls,
        wordChoice(ctx, "sublayers"),
        numberChoice(ctx, "part4Layer", "choose.layer", config.encoder_layers),
      );
      const layer = store.encoded.layers[store.choices.part4Layer];
      redraw(first, residualPicture(ctx, layer.residuals[0], "attention"));
      redraw(hidden, hiddenPicture(ctx, layer.feedForward));
      redraw(second, residualPicture(ctx, layer.residuals[1], "feedForward"));
      redraw(changes, changeTable(ctx));
    },
  };
}

// The vector before, what the sub-layer adds, the sum, and the sum normalized.
function residualPicture({ store, texts }, residual, kind) {
  const { word } = store.choices;
  const lines = ["before", "subLayer", "sum", "normalized"].map((name) => {
    const values = row(residual[name], word);
    const title = texts.t(name === "subLayer" ? `sublayers.${kind}` : `sublayers.${name}`);
    return {
      label: title,
      name: title,
      values,
      strong: name === "normalized",
      note: texts.rich("sublayers.moments", { mean: number(mean(values)), deviation: number(deviation(values)) }),
    };
  });
  return strips(lines, {
    texts,
    label: texts.t("sublayers.strips", { subLayer: texts.t(`sublayers.${kind}`), word: spoken(store.pieces[word]) }),
    key: `residual-${kind}`,
    hint: kind === "attention",
  });
}

function hiddenPicture({ store, texts }, { hidden }) {
  const values = row(hidden, store.choices.word);
  const active = values.reduce((sum, value) => sum + (value > 0 ? 1 : 0), 0);
  const switchesOff = SWITCHES_OFF.includes(store.model.config.activation_function);
  const name = texts.t("sublayers.hidden", { count: count(values.length) });
  return [
    strips([{ label: name, name, values }], { texts, label: name, key: "feed-forward-hidden", table: false }),
    h(
      "p",
      { class: "remark" },
      texts.rich(switchesOff ? "sublayers.active" : "sublayers.positive", {
        active: h("b", {}, count(active)),
        count: count(values.length),
        word: token(store.pieces[store.choices.word]),
      }),
    ),
  ];
}

// For each sub-layer of the encoder: how long what it adds is beside what it was added to, and how far the vector turned.
function changeTable({ store, texts }) {
  const { word, part4Layer } = store.choices;
  const lines = store.encoded.layers.flatMap((layer, l) =>
    layer.residuals.map((residual, i) => {
      const [before, added, after] = ["before", "subLayer", "normalized"].map((name) => row(residual[name], word));
      return {
        name: texts.t("sublayers.place", {
          layer: l + 1,
          subLayer: texts.t(i === 0 ? "sublayers.attention" : "sublayers.feedForward"),
        }),
        share: norm(added) / norm(before),
        similarity: cosine(before, after),
        selected: l === part4Layer,
      };
    }),
  );
  const most = Math.max(...lines.map(({ share }) => share), 1);
  return table(
    texts.t("sublayers.changes", { word: spoken(store.pieces[word]) }),
    [texts.t("sublayers.column"), texts.t("sublayers.share"), texts.t("sublayers.similarity")],
    lines.map(({ name, share, similarity, selected }) => ({
      head: name,
      selected,
      cells: [barCell(number(share), share / most), barCell(number(similarity), similarity)],
    })),
  );
}
