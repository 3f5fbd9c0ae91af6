// Long vectors as strips: one bar per dimension, upwards and in one colour where it is positive, downwards where negative.

import { addCursor } from "#page/ui/cursor.js";
import { h, svg } from "#page/ui/dom.js";
import { largest, number } from "#page/ui/numbers.js";

const SHOWN_IN_TABLE = 8;

function bars(values, scale, sign) {
  let path = "";
  for (let i = 0; i < values.length; i++) {
    const height = (sign * values[i]) / scale;
    if (height > 0.004) path += `M${i + 0.06} 0h.88v${(-sign * Math.min(height, 1)).toFixed(3)}h-.88z`;
  }
  return path;
}

function strip(values, scale, boundaries) {
  const size = values.length;
  const drawing = svg("svg", {
    viewBox: `0 -1.05 ${size} 2.1`,
    preserveAspectRatio: "none",
    class: "strip",
    "aria-hidden": "true",
  });
  for (const place of boundaries ?? []) drawing.append(svg("path", { d: `M${place} -1.05V1.05`, class: "boundary" }));
  drawing.append(
    svg("path", { d: `M0 0H${size}`, class: "axis" }),
    svg("path", { d: bars(values, scale, 1), class: "positive" }),
    svg("path", { d: bars(values, scale, -1), class: "negative" }),
  );
  return drawing;
}

// Draw vectors below each other, on one scale.
//   rows   [{label: node or text, name: text for the line below, values, note: text at the end, strong: bool, boundaries}]
//   texts  the page's texts
// `scale` is the value that fills half the height of a strip, by default the largest of all; with `hint` the line below
// says how to read values until there is one.
export function strips(rows, { texts, label, scale, key, table = true, hint = false }) {
  const full = scale ?? largest(rows.map((row) => row.values));
  const drawings = rows.map((row) => strip(row.values, row.scale ?? full, row.boundaries));
  const grid = h("div", {
    class: rows.some((row) => row.note !== undefined) ? "strips with-notes" : "strips",
    "data-key": key,
  });
  rows.forEach((row, i) => {
    grid.append(h("span", { class: row.strong ? "strip-label strong" : "strip-label" }, row.label));
    if (row.note !== undefined) grid.append(h("span", { class: "strip-note" }, row.note));
    grid.append(drawings[i]);
  });
  let marked = null;
  const readout = addCursor(grid, {
    rows: rows.length,
    cols: (r) => rows[r].values.length,
    label: `${label}. ${texts.t("hint.arrows")}`,
    hint: hint ? texts.t("hint.values") : "",
    describe: (r, c) => texts.t("strip.value", { name: rows[r].name, dimension: c, value: number(rows[r].values[c]) }),
    locate: (event) => {
      const r = drawings.indexOf(event.target.closest("svg.strip"));
      if (r < 0) return null;
      const box = drawings[r].getBoundingClientRect();
      const size = rows[r].values.length;
      return [r, Math.min(Math.max(Math.floor(((event.clientX - box.left) / box.width) * size), 0), size - 1)];
    },
    mark: (r, c) => {
      marked?.remove();
      marked = r === null ? null : svg("path", { d: `M${c + 0.5} -1.05V1.05`, class: "mark" });
      if (marked) drawings[r].append(marked);
    },
  });
  return h("div", { class: "strips-box" }, grid, readout, table && valuesTable(rows, texts, label, `${key}-table`));
}

// The first few values as a table, made when it is opened.
function valuesTable(rows, texts, label, name) {
  const details = h(
    "details",
    { class: "numbers", "data-open": name },
    h("summary", { "data-key": name }, texts.t("table.first", { count: SHOWN_IN_TABLE })),
  );
  details.addEventListener("toggle", () => {
    if (!details.open || details.querySelector("table")) return;
    const width = Math.min(SHOWN_IN_TABLE, Math.max(...rows.map((row) => row.values.length)));
    const head = h(
      "tr",
      {},
      h("th", { scope: "col" }, texts.t("table.vector")),
      ...Array.from({ length: width }, (_, i) => h("th", { scope: "col" }, String(i))),
    );
    const lines = rows.map((row) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, row.name),
        ...Array.from(row.values.subarray(0, width), (value) => h("td", {}, number(value))),
      ),
    );
    const filled = h("table", { class: "values" }, h("thead", {}, head), h("tbody", {}, lines));
    details.append(scrollable(texts, label, filled, `${name}-scroll`));
  });
  return details;
}

// A box that scrolls sideways by itself, so that the page never does.
export function scrollable(texts, label, content, name) {
  return h(
    "div",
    {
      class: "scroll",
      role: "region",
      tabindex: "0",
      "aria-label": `${label}. ${texts.t("hint.scroll")}`,
      "data-scroll": name,
      "data-key": name,
    },
    content,
  );
}
