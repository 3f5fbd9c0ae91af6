// Part 7: training, in the smallest example that there is and in the reader's own run.

import { chart, legend } from "#page/ui/chart.js";
import { button, prefersStill, slider } from "#page/ui/controls.js";
import { h, redraw } from "#page/ui/dom.js";
import { fit } from "#page/ui/fit.js";
import { formula } from "#page/ui/formulas.js";
import { count, number, probability } from "#page/ui/numbers.js";
import { block, section, slot } from "#page/ui/section.js";
import { scrollable } from "#page/ui/strips.js";
import { barCell, table } from "#page/ui/tables.js";

const PACE = 350; // ms for each recorded step when played

export function trainingPart(ctx) {
  const { payload, texts } = ctx;
  const { classic } = payload;
  const values = {
    source: classic.source,
    target: classic.target,
    smoothing: number(classic.smoothing),
    words: count(classic.vocabulary.length),
    smoothed: probability(1 - classic.smoothing + classic.smoothing / classic.vocabulary.length),
    other: probability(classic.smoothing / classic.vocabulary.length),
  };
  const [controls, distributions, losses, own] = [slot("controls sliders"), slot("distributions"), slot(), slot()];
  const element = section(
    "training",
    texts,
    block("training.classic", texts, { values, formulas: formula("loss", ctx), wide: true }, controls, distributions),
    block("training.loss", texts, { values }, losses),
    block("training.run", texts, { values }, own),
  );
  const player = makePlayer(ctx);
  redraw(own, runPicture(ctx));
  return {
    element,
    uses: ["classicStep", "playing"],
    leave: player.stop,
    draw() {
      redraw(controls, stepControls(ctx, player));
      redraw(
        distributions,
        classic.targets.map((target, position) => distributionTable(ctx, target, position)),
      );
      redraw(losses, lossPicture(ctx));
    },
  };
}

// Plays the recorded steps one after the other; where motion is unwanted it shows the last at once.
function makePlayer({ store, payload, set }) {
  const last = payload.classic.steps.length - 1;
  let timer = null;
  const stop = () => {
    clearInterval(timer);
    timer = null;
  };
  const advance = () => {
    const next = store.choices.classicStep + 1;
    if (next >= last) stop();
    set({ classicStep: Math.min(next, last), playing: next });
  };
  return {
    get playing() {
      return timer !== null;
    },
    stop,
    toggle() {
      if (timer) {
        stop();
        return set({ playing: false });
      }
      if (prefersStill()) return set({ classicStep: last });
      timer = setInterval(advance, PACE);
      return set({ classicStep: store.choices.classicStep >= last ? 0 : store.choices.classicStep, playing: true });
    },
  };
}

function stepControls({ store, texts, set, payload }, player) {
  const { steps } = payload.classic;
  const choose = (classicStep) => {
    player.stop();
    set({ classicStep });
  };
  return [
    slider(
      texts.t("training.step"),
      {
        min: 0,
        max: steps.length - 1,
        value: store.choices.classicStep,
        format: (i) => texts.t("training.at", { step: steps[i].step, loss: probability(steps[i].loss) }),
        key: "classic-step",
      },
      choose,
    ),
    button(texts.t(player.playing ? "training.pause" : "training.play"), () => player.toggle(), {
      key: "classic-play",
    }),
  ];
}

function distributionTable({ store, texts, payload }, target, position) {
  const { classic } = payload;
  const predicted = classic.steps[store.choices.classicStep].probabilities[position];
  const lines = classic.vocabulary.map((word, i) => ({
    head: h("bdi", {}, word),
    selected: word === target,
    cells: [
      barCell(probability(predicted[i]), predicted[i], "weight"),
      barCell(probability(classic.oneHot[position][i]), classic.oneHot[position][i], "outlined"),
      barCell(probability(classic.smoothed[position][i]), classic.smoothed[position][i], "hatched"),
    ],
  }));
  return table(
    texts.t("training.position", { position: position + 1, target }),
    [texts.t("training.word"), texts.t("training.predicted"), texts.t("training.oneHot"), texts.t("training.smoothed")],
    lines,
    "distribution",
  );
}

function lossPicture({ store, texts, payload }) {
  const { steps, smoothed } = payload.classic;
  const series = [
    { name: texts.t("training.crossEntropy"), points: steps.map(({ step, loss }) => [step, loss]), kind: "first" },
  ];
  const entropy =
    smoothed
      .map((q) => -q.reduce((sum, p) => sum + (p > 0 ? p * Math.log(p) : 0), 0))
      .reduce((sum, value) => sum + value, 0) / smoothed.length;
  const { step, loss } = steps[store.choices.classicStep];
  return [
    legend(series),
    fit("classic-loss", h("div", {}), (width) =>
      chart(width, {
        series,
        xLabel: texts.t("axis.stretched"),
        yLabel: texts.t("axis.nats"),
        stretchedX: true,
        now: step,
        level: { y: entropy, name: texts.t("training.floor", { value: probability(entropy) }) },
        label: texts.t("training.loss.label", {
          step,
          loss: probability(loss),
          first: probability(steps[0].loss),
          last: probability(steps.at(-1).loss),
        }),
      }),
    ),
  ];
}

function runPicture({ texts, payload }) {
  const run = payload.run;
  if (!run) return h("p", { class: "remark" }, texts.t("training.noRun"));
  const curves = (names) => names.filter(([name]) => run[name]?.length > 0);
  const losses = curves([
    ["train", "first", false],
    ["validation", "second", true],
  ]).map(([name, kind, dots]) => ({ name: texts.t(`training.${name}`), points: run[name], kind, dots }));
  const scores = curves([["scores", "third", true]]).map(([name, kind, dots]) => ({
    name: texts.t(`training.${name}`),
    points: run[name],
    kind,
    dots,
  }));
  const draw = (key, series, yLabel, logY = false) =>
    series.length > 0 && [
      legend(series),
      fit(key, h("div", {}), (width) =>
        chart(width, {
          series,
          xLabel: texts.t("axis.step"),
          yLabel: logY ? `${yLabel} (${texts.t("axis.logarithmic")})` : yLabel,
          height: 200,
          logY,
          label: series.map((one) => summary(texts, one)).join(" "),
        }),
      ),
    ];
  return [
    draw("run-loss", losses, texts.t("axis.nats"), spansMuch(losses)),
    draw("run-score", scores, "BLEU"),
    lastTable(texts, [...losses, ...scores]),
  ];
}

// Whether the curves of a plain scale would lie on the axis for the most part.
function spansMuch(series) {
  const values = series.flatMap(({ points }) => points.map(([, value]) => value));
  return Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) > 50;
}

const summary = (texts, { name, points }) =>
  texts.t("training.curve", {
    name,
    first: number(points[0][1]),
    last: number(points.at(-1)[1]),
    steps: count(points.at(-1)[0]),
  });

function lastTable(texts, series) {
  if (!series.length) return null;
  const details = h(
    "details",
    { class: "numbers", "data-open": "run-table" },
    h("summary", { "data-key": "run-table-summary" }, texts.t("training.run.table")),
  );
  const lines = series.map(({ name, points }) => ({
    head: name,
    cells: [
      h("td", {}, number(points[0][1])),
      h("td", {}, number(points.at(-1)[1])),
      h("td", {}, count(points.at(-1)[0])),
    ],
  }));
  details.append(
    scrollable(
      texts,
      texts.t("training.run.table"),
      table(
        texts.t("training.run.table"),
        [
          texts.t("training.run.curve"),
          texts.t("training.run.first"),
          texts.t("training.run.last"),
          texts.t("axis.step"),
        ],
        lines,
      ),
      "run-table",
    ),
  );
  return details;
}
