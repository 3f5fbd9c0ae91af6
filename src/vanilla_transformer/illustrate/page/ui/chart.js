// Line charts: curves told apart by their dashes and marks as well as by colour.

import { h, svg } from "#page/ui/dom.js";
import { count } from "#page/ui/numbers.js";

// Round steps from low to high, about `wanted` of them.
function ticks(low, high, wanted) {
  const raw = (high - low || 1) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw);
  const result = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-6; i++) result.push(i * step);
  return result;
}

const tickText = (value) =>
  Number.isInteger(value) ? count(value).replace("-", "−") : String(Number(value.toPrecision(3))).replace("-", "−");

// 0.01, 0.1, 1, ...: the powers of ten from low to high.
function powers(low, high) {
  const result = [];
  for (let e = Math.ceil(Math.log10(low) - 1e-9); 10 ** e <= high * (1 + 1e-9); e++) result.push(10 ** e);
  return result;
}

// Draw series [{name, points: [[x, y]], kind: "first" | "second" | "third", dots: bool}] in `width` px.
//   now    an x at which a vertical line stands
//   level  {y, name}: a horizontal line
//   stretchedX   early steps are drawn further apart than late ones: log(1 + x)
//   logY         y is logarithmic; all values are positive
export function chart(
  width,
  { series, xLabel, yLabel, now, level, label, height = 240, low = 0, stretchedX = false, logY = false },
) {
  const left = 48;
  const [right, top, bottom] = [width - 20, 26, height - 38];
  const points = series.flatMap((one) => one.points).filter(([, y]) => Number.isFinite(y));
  const xs = points.map(([x]) => x);
  const ys = [...points.map(([, y]) => y), ...(level ? [level.y] : [])];
  const [x0, x1] = [Math.min(0, ...xs), Math.max(...xs)];
  const y0 = logY ? Math.min(...ys) / 1.2 : Math.min(low, ...ys);
  const y1 = logY ? Math.max(...ys) * 1.2 : Math.max(...ys, y0 + 1e-6) * 1.02;
  const [bent, bentY] = [stretchedX ? Math.log1p : (value) => value, logY ? Math.log : (value) => value];
  const x = (value) => left + ((bent(value) - bent(x0)) / (bent(x1) - bent(x0) || 1)) * (right - left);
  const y = (value) => bottom - ((bentY(value) - bentY(y0)) / (bentY(y1) - bentY(y0))) * (bottom - top);
  const drawing = svg("svg", {
    width,
    height,
    viewBox: `0 0 ${width} ${height}`,
    class: "chart",
    role: "img",
    "aria-label": label,
  });
  for (const tick of logY ? powers(y0, y1) : ticks(y0, y1, 5)) {
    drawing.append(
      svg("path", { d: `M${left} ${y(tick)}H${right}`, class: "gridline" }),
      svg("text", { x: left - 6, y: y(tick), class: "tick-y" }, tickText(tick)),
    );
  }
  const ticksX = stretchedX
    ? [0, 1, 3, 10, 30, 100, 300, 1000].filter((tick) => tick <= x1)
    : ticks(x0, x1, width > 420 ? 6 : 3);
  for (const tick of ticksX)
    drawing.append(svg("text", { x: x(tick), y: bottom + 14, class: "tick-x" }, tickText(tick)));
  drawing.append(
    svg("path", { d: `M${left} ${top}V${bottom}H${right}`, class: "frame" }),
    svg("text", { x: right, y: height - 6, class: "axis-x" }, xLabel),
    svg("text", { x: 4, y: 12, class: "axis-y" }, yLabel),
  );
  if (level)
    drawing.append(
      svg("path", { d: `M${left} ${y(level.y)}H${right}`, class: "level" }),
      svg("text", { x: right - 4, y: y(level.y) + 11, class: "level-name" }, level.name),
    );
  for (const { points: own, kind, dots } of series) {
    const finite = own.filter(([, value]) => Number.isFinite(value));
    drawing.append(
      svg("path", {
        d: finite.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join(""),
        class: `curve ${kind}`,
      }),
    );
    if (dots)
      for (const [a, b] of finite) drawing.append(svg("circle", { cx: x(a), cy: y(b), r: 3.5, class: `dot ${kind}` }));
  }
  if (now !== undefined) {
    drawing.append(svg("path", { d: `M${x(now)} ${top}V${bottom}`, class: "now" }));
    for (const { points: own, kind } of series) {
      const here = own.find(([a]) => a === now);
      if (here) drawing.append(svg("circle", { cx: x(now), cy: y(here[1]), r: 5, class: `dot ${kind}` }));
    }
  }
  return drawing;
}

// What the curves are: a sample of each line and its name.
export function legend(entries) {
  return h(
    "ul",
    { class: "legend" },
    entries.map(({ name, kind, dots }) =>
      h(
        "li",
        {},
        svg(
          "svg",
          { width: 34, height: 12, class: "chart", "aria-hidden": "true" },
          svg("path", { d: "M1 6H33", class: `curve ${kind}` }),
          dots && svg("circle", { cx: 17, cy: 6, r: 3.5, class: `dot ${kind}` }),
        ),
        name,
      ),
    ),
  );
}
