// Matrices of attention: one square per pair of tokens, the larger the more; numbers where there is room.

import { addCursor } from "#page/ui/cursor.js";
import { h, svg } from "#page/ui/dom.js";
import { columnsOf, shorten, visible } from "#page/ui/labels.js";
import { scrollable } from "#page/ui/strips.js";

const SMALLEST = 5; // px of a cell; below that the matrix scrolls
const LARGEST = 46;
const ROOM_FOR_NUMBERS = 38;
const ROOM_FOR_LABELS = 11;

function layout(width, rowLabels, colLabels) {
  const columns = (labels) => Math.max(...labels.map(columnsOf), 1);
  const left = Math.min(10 + 7.2 * Math.min(columns(rowLabels), 9), width / 3);
  const cell = Math.max(Math.min(Math.floor((width - left - 4) / colLabels.length), LARGEST), SMALLEST);
  const head = cell >= ROOM_FOR_LABELS ? 12 + 6.6 * Math.min(columns(colLabels), 9) : 6;
  return {
    left,
    cell,
    top: head,
    width: left + cell * colLabels.length + 4,
    height: head + cell * rowLabels.length + 4,
  };
}

function squares(matrix, { left, top, cell }, side, test) {
  let path = "";
  for (let r = 0; r < matrix.rows; r++) {
    for (let c = 0; c < matrix.cols; c++) {
      const value = matrix.data[r * matrix.cols + c];
      const size = test(value) ? side(value) * (cell - 2) : 0;
      if (size < 0.4) continue;
      const x = left + c * cell + (cell - size) / 2;
      const y = top + r * cell + (cell - size) / 2;
      path += `M${x.toFixed(1)} ${y.toFixed(1)}h${size.toFixed(1)}v${size.toFixed(1)}h${(-size).toFixed(1)}z`;
    }
  }
  return path;
}

// Draw a matrix {data, rows, cols} in `width` px.
//   rowPieces, colPieces   the tokens beside and above it
//   selected               the row that is framed
//   format                 value -> text
//   describe               (row, column, text of the value) -> the line below
//   choose                 what a click on a row does
// Cells of minus infinity are hatched and say so.
export function matrixPicture(
  matrix,
  width,
  { texts, rowPieces, colPieces, selected, format, describe, choose, label, key, largestValue },
) {
  const rowLabels = rowPieces.map((piece) => shorten(visible(piece), 8));
  const colLabels = colPieces.map((piece) => shorten(visible(piece), 8));
  const plan = layout(width, rowLabels, colLabels);
  const { left, top, cell } = plan;
  let most = largestValue ?? 0;
  if (!most) for (const value of matrix.data) if (Number.isFinite(value)) most = Math.max(most, Math.abs(value));
  const side = (value) => Math.sqrt(Math.min(Math.abs(value) / (most || 1), 1));
  const drawing = svg("svg", {
    width: plan.width,
    height: plan.height,
    viewBox: `0 0 ${plan.width} ${plan.height}`,
    class: cell >= ROOM_FOR_NUMBERS ? "matrix numbered" : "matrix",
    "aria-hidden": "true",
  });
  drawing.append(
    svg("rect", { x: left, y: top, width: cell * matrix.cols, height: cell * matrix.rows, class: "ground" }),
  );
  if (cell > 7) {
    let lines = "";
    for (let r = 1; r < matrix.rows; r++) lines += `M${left} ${top + r * cell}h${cell * matrix.cols}`;
    for (let c = 1; c < matrix.cols; c++) lines += `M${left + c * cell} ${top}v${cell * matrix.rows}`;
    drawing.append(svg("path", { d: lines, class: "lines" }));
  }
  drawing.append(
    svg("path", { d: squares(matrix, plan, side, (value) => value > 0 && Number.isFinite(value)), class: "positive" }),
    svg("path", { d: squares(matrix, plan, side, (value) => value < 0 && Number.isFinite(value)), class: "negative" }),
    svg("path", { d: hatch(matrix, plan), class: "masked" }),
  );
  if (selected !== undefined && selected < matrix.rows) {
    drawing.append(
      svg("rect", { x: left, y: top + selected * cell, width: cell * matrix.cols, height: cell, class: "selected" }),
    );
  }
  if (cell >= ROOM_FOR_LABELS) {
    drawing.style.setProperty("--label-size", `${Math.min(cell - 1.5, 12)}px`);
    rowLabels.forEach((text, r) =>
      drawing.append(
        svg(
          "text",
          { x: left - 6, y: top + (r + 0.5) * cell, class: r === selected ? "row-label strong" : "row-label" },
          text,
        ),
      ),
    );
    colLabels.forEach((text, c) =>
      drawing.append(
        svg(
          "text",
          { transform: `translate(${left + (c + 0.5) * cell} ${top - 6}) rotate(-90)`, class: "column-label" },
          text,
        ),
      ),
    );
  }
  if (cell >= ROOM_FOR_NUMBERS) {
    for (let r = 0; r < matrix.rows; r++) {
      for (let c = 0; c < matrix.cols; c++) {
        drawing.append(
          svg(
            "text",
            { x: left + (c + 0.5) * cell, y: top + (r + 0.5) * cell, class: "cell-number" },
            format(matrix.data[r * matrix.cols + c]),
          ),
        );
      }
    }
  }
  const mark = svg("rect", { width: cell, height: cell, class: "mark", visibility: "hidden" });
  drawing.append(mark);
  const area = h("div", { class: "matrix-area", "data-key": key }, drawing);
  const readout = addCursor(area, {
    rows: matrix.rows,
    cols: matrix.cols,
    start: [selected ?? 0, 0],
    label: `${label}. ${texts.t("hint.arrows")}`,
    hint: texts.t("hint.values"),
    describe: (r, c) => describe(r, c, format(matrix.data[r * matrix.cols + c])),
    choose,
    locate: (event) => {
      const box = drawing.getBoundingClientRect();
      const c = Math.floor((event.clientX - box.left - left) / cell);
      const r = Math.floor((event.clientY - box.top - top) / cell);
      return r >= 0 && r < matrix.rows && c < matrix.cols ? [r, Math.max(c, 0)] : null;
    },
    mark: (r, c) => {
      mark.setAttribute("visibility", r === null ? "hidden" : "visible");
      if (r === null) return;
      mark.setAttribute("x", left + c * cell);
      mark.setAttribute("y", top + r * cell);
    },
  });
  const picture = plan.width > width ? scrollable(texts, label, area, `${key}-scroll`) : area;
  return h("div", { class: "matrix-box" }, picture, readout);
}

function hatch(matrix, { left, top, cell }) {
  let path = "";
  for (let r = 0; r < matrix.rows; r++) {
    for (let c = 0; c < matrix.cols; c++) {
      if (matrix.data[r * matrix.cols + c] !== -Infinity) continue;
      const x = left + c * cell;
      const y = top + r * cell;
      path += `M${x + 1} ${y + cell - 1}L${x + cell - 1} ${y + 1}`;
      if (cell > 12)
        path += `M${x + 1} ${y + cell / 2}L${x + cell / 2} ${y + 1}M${x + cell / 2} ${y + cell - 1}L${x + cell - 1} ${y + cell / 2}`;
    }
  }
  return path;
}
