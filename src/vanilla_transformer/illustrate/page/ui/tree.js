// Beam search as a tree: one column for each step, hypotheses that go on above, finished and dropped ones below.

import { addCursor } from "#page/ui/cursor.js";
import { h, svg } from "#page/ui/dom.js";
import { shorten, visible } from "#page/ui/labels.js";
import { probability } from "#page/ui/numbers.js";
import { scrollable } from "#page/ui/strips.js";

const BOX = { width: 112, height: 38 };
const GAP = { x: 40, y: 12 };
const DROPPED_SHOWN = 2; // the best in each step; the others are in no beam's reach
const TOP = 26;

// The boxes of a search's result: {step, lane, kind: "start" | "alive" | "finished" | "dropped", node, best}.
function arrange({ steps, nodes, hypotheses }) {
  const best = new Set();
  for (let at = nodes[hypotheses[0]?.node]; at; at = nodes[at.parent]) best.add(at.id);
  const lanes = Math.max(1, ...steps.map(({ alive }) => alive.length));
  const finishedLanes = Math.max(0, ...steps.map(({ finished }) => finished.length));
  const columns = [[{ step: 0, lane: 0, kind: "start", node: nodes[0], best: true }]];
  steps.forEach(({ alive, finished, dropped }, i) => {
    const column = alive.map((node, lane) => ({ step: i + 1, lane, kind: "alive", node, best: best.has(node.id) }));
    finished.forEach((node, lane) =>
      column.push({ step: i + 1, lane: lanes + lane, kind: "finished", node, best: best.has(node.id) }),
    );
    dropped
      .slice(0, DROPPED_SHOWN)
      .forEach((node, lane) =>
        column.push({ step: i + 1, lane: lanes + finishedLanes + lane, kind: "dropped", node, best: false }),
      );
    columns.push(column);
  });
  const places = new Map(
    columns
      .flat()
      .filter(({ kind }) => kind !== "dropped")
      .map((box) => [box.node.id, box]),
  );
  return { columns, places, lanes, finishedLanes, all: lanes + finishedLanes + DROPPED_SHOWN };
}

const left = (box) => 4 + box.step * (BOX.width + GAP.x);
const above = (box) => TOP + box.lane * (BOX.height + GAP.y);

function edge(from, to) {
  const [x1, y1, x2, y2] = [left(from) + BOX.width, above(from) + BOX.height / 2, left(to), above(to) + BOX.height / 2];
  return svg("path", {
    d: `M${x1} ${y1}C${x1 + GAP.x / 2} ${y1} ${x2 - GAP.x / 2} ${y2} ${x2} ${y2}`,
    class: `edge ${to.kind}${to.best ? " best" : ""}`,
  });
}

function drawBox(box, piece) {
  const [x, y] = [left(box), above(box)];
  const { node, kind } = box;
  const sign = { alive: "", start: "", finished: "✓ ", dropped: "✕ " }[kind];
  const group = svg(
    "g",
    { class: `node ${kind}${box.best ? " best" : ""}` },
    svg("rect", { x, y, width: BOX.width, height: BOX.height, rx: 6 }),
  );
  if (kind === "finished")
    group.append(
      svg("rect", { x: x + 3, y: y + 3, width: BOX.width - 6, height: BOX.height - 6, rx: 4, class: "inner" }),
    );
  group.append(
    svg("text", { x: x + BOX.width / 2, y: y + 13, class: "node-token" }, sign + shorten(visible(piece), 9)),
  );
  const numbers =
    kind === "finished" ? `${probability(node.logProb)} → ${probability(node.score)}` : probability(node.logProb);
  group.append(
    svg(
      "text",
      { x: x + BOX.width / 2, y: y + 28, class: kind === "finished" ? "node-number small" : "node-number" },
      numbers,
    ),
  );
  return group;
}

// Draw the tree; `describe(kind, node)` is the text of a box for the line below.
export function treePicture(result, { texts, pieceOf, describe, label }) {
  const { columns, places, lanes, finishedLanes, all } = arrange(result);
  const width = 8 + columns.length * (BOX.width + GAP.x) - GAP.x;
  const height = TOP + all * (BOX.height + GAP.y);
  const drawing = svg("svg", {
    width,
    height,
    viewBox: `0 0 ${width} ${height}`,
    class: "tree",
    "aria-hidden": "true",
  });
  const bands = [
    [0, lanes, "alive"],
    [lanes, finishedLanes, "finished"],
    [lanes + finishedLanes, DROPPED_SHOWN, "dropped"],
  ];
  for (const [first, count, kind] of bands) {
    if (count)
      drawing.append(
        svg("rect", {
          x: 0,
          y: TOP + first * (BOX.height + GAP.y) - GAP.y / 2,
          width,
          height: count * (BOX.height + GAP.y),
          class: `band ${kind}`,
        }),
      );
  }
  columns
    .slice(1)
    .forEach((_, i) =>
      drawing.append(
        svg(
          "text",
          { x: left({ step: i + 1 }) + BOX.width / 2, y: 12, class: "tick-x" },
          texts.t("tree.step", { step: i + 1 }),
        ),
      ),
    );
  const edges = columns
    .flat()
    .filter((box) => places.has(box.node.parent))
    .sort((a, b) => a.best - b.best);
  for (const box of edges) drawing.append(edge(places.get(box.node.parent), box));
  for (const box of columns.flat()) drawing.append(drawBox(box, pieceOf(box.node.token)));
  const mark = svg("rect", {
    width: BOX.width + 6,
    height: BOX.height + 6,
    rx: 8,
    class: "mark",
    visibility: "hidden",
  });
  drawing.append(mark);
  const area = h("div", { class: "tree-area", "data-key": "tree" }, drawing);
  const readout = addCursor(area, {
    rows: columns.length,
    cols: (r) => columns[r].length,
    turned: true,
    label: `${label}. ${texts.t("hint.tree")}`,
    hint: texts.t("hint.tree"),
    describe: (r, c) => describe(columns[r][c].kind, columns[r][c].node),
    locate: (event) => {
      const bounds = drawing.getBoundingClientRect();
      const [x, y] = [event.clientX - bounds.left, event.clientY - bounds.top];
      for (const [r, column] of columns.entries()) {
        const c = column.findIndex(
          (box) => x >= left(box) && x <= left(box) + BOX.width && y >= above(box) && y <= above(box) + BOX.height,
        );
        if (c >= 0) return [r, c];
      }
      return null;
    },
    mark: (r, c) => {
      mark.setAttribute("visibility", r === null ? "hidden" : "visible");
      if (r === null) return;
      const box = columns[r][c];
      mark.setAttribute("x", left(box) - 3);
      mark.setAttribute("y", above(box) - 3);
      const scroller = area.parentElement;
      if (document.activeElement !== area || !scroller) return;
      const hidden =
        left(box) - 40 < scroller.scrollLeft || left(box) + BOX.width + 40 > scroller.scrollLeft + scroller.clientWidth;
      if (hidden) scroller.scrollLeft = left(box) - scroller.clientWidth / 2;
    },
  });
  return [scrollable(texts, label, area, "tree-scroll"), readout];
}
