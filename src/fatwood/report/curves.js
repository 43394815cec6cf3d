// Curves over steps: the mean of all workers, with a band from the least to the largest.
const CURVES = [
  { name: "loss", title: "Training loss", unit: "by step", weight: "rows", marks: true },
  { name: "message_bytes", title: "Message", unit: "bytes a step and worker", zero: true },
  { name: "tau", title: "Threshold tau", unit: "as sent", log: true },
  { name: "density", title: "Density", unit: "share of the parameters sent", log: true },
  { name: "seconds", title: "Time of a step", unit: "seconds", zero: true },
];
const MOST_COLUMNS = 320;

function columns(curve) {
  const having = workers.filter((w) => w.steps.figures[curve.name]);
  if (!having.length) return [];
  const from = Math.min(...having.map((w) => w.steps.first));
  const to = Math.max(...having.map((w) => w.steps.first + w.steps.width * w.steps.steps.length));
  const count = Math.min(MOST_COLUMNS, Math.ceil((to - from) / Math.max(...having.map((w) => w.steps.width))));
  const found = Array.from({ length: count }, () => ({ sum: 0, weight: 0, least: Infinity, most: -Infinity, x: 0, n: 0 }));
  for (const { steps } of having) {
    const figure = steps.figures[curve.name], least = figure.least || figure.mean, most = figure.most || figure.mean;
    const weights = curve.weight && steps.figures[curve.weight] ? steps.figures[curve.weight].mean : null;
    for (let i = 0; i < steps.steps.length; i += 1) {
      if (figure.mean[i] === null) continue;
      const x = steps.first + i * steps.width + (steps.steps[i] - 1) / 2;
      const column = found[Math.min(count - 1, Math.floor(((x - from) / (to - from)) * count))];
      const weight = steps.steps[i] * (weights ? weights[i] || 0 : 1);
      column.sum += figure.mean[i] * weight;
      column.weight += weight;
      column.least = Math.min(column.least, least[i]);
      column.most = Math.max(column.most, most[i]);
      column.x += x;
      column.n += 1;
    }
  }
  return found.filter((c) => c.weight > 0).map((c) => ({ x: c.x / c.n, mean: c.sum / c.weight, least: c.least, most: c.most }));
}

function scaleOf(curve, points, marks) {
  const lows = points.map((p) => p.least), highs = points.map((p) => p.most);
  let low = Math.min(...lows, ...marks.map((m) => m.y)), high = Math.max(...highs, ...marks.map((m) => m.y));
  const positive = points.filter((p) => p.least > 0).map((p) => p.least);
  const log = high > 0 && positive.length > points.length / 2 && (curve.log ? high / Math.min(...positive) > 3 : high / Math.min(...positive) > 30);
  if (log) {
    low = Math.log10(Math.max(Math.min(...positive), high / 1e9));
    high = Math.log10(high);
  } else if (curve.zero) low = Math.min(0, low);
  if (high - low < 1e-12 * Math.max(1, Math.abs(high))) { const pad = log ? 0.1 : Math.abs(high) * 0.1 || 1; low -= pad; high += pad; }
  const pad = (high - low) * 0.05;
  high += pad;
  if (log || !curve.zero || low < 0) low -= pad;
  return { low, high, log, of: (value) => (log ? Math.log10(Math.max(value, 10 ** low)) : value) };
}

function yTicks(scale) {
  if (!scale.log) {
    const { step } = ticks(scale.low, scale.high, 5.5), found = [];
    for (let v = Math.ceil(scale.low / step) * step; v <= scale.high; v += step) found.push(Number(v.toPrecision(12)));
    return found;
  }
  const decades = scale.high - scale.low, found = [];
  for (let d = Math.floor(scale.low); d <= Math.ceil(scale.high); d += 1) {
    for (const k of decades < 1 ? [1, 1.5, 2, 3, 4, 5, 7] : decades < 2.5 ? [1, 2, 5] : [1]) {
      const at = d + Math.log10(k);
      if (at >= scale.low && at <= scale.high) found.push(k * 10 ** d);
    }
  }
  const every = Math.ceil(found.length / 7);
  return found.filter((_, i) => i % every === 0);
}

function drawCurve(curve, figure) {
  const { points, marks } = curve, wide = figure.clientWidth || 500, high = 190, left = 52, right = 10, top = 8, bottom = 26;
  const scale = scaleOf(curve, points, marks);
  const x0 = points[0].x, x1 = Math.max(points[points.length - 1].x, x0 + 1);
  const x = (v) => left + ((v - x0) / (x1 - x0)) * (wide - left - right);
  const y = (v) => top + (1 - (scale.of(v) - scale.low) / (scale.high - scale.low)) * (high - top - bottom);
  const last = points[points.length - 1];
  const spoken = curve.title + ": first " + short(points[0].mean) + ", last " + short(last.mean) + ", from " + short(Math.min(...points.map((p) => p.least))) + " to " + short(Math.max(...points.map((p) => p.most)));
  const svg = node("svg", { viewBox: `0 0 ${wide} ${high}`, role: "img", "aria-label": spoken, tabindex: 0 });
  for (const v of yTicks(scale)) {
    svg.append(node("line", { class: "grid", x1: left, x2: wide - right, y1: y(v), y2: y(v) }));
    svg.append(node("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, short(v)));
  }
  const { step } = ticks(x0, x1, Math.max(3, wide / 75));
  for (let v = Math.ceil(x0 / step) * step; v <= x1; v += Math.max(1, step)) {
    svg.append(node("text", { x: x(v), y: high - 8, "text-anchor": x(v) > wide - 30 ? "end" : "middle" }, short(v)));
  }
  const edge = [...points.map((p) => [x(p.x), y(p.most)]), ...points.map((p) => [x(p.x), y(p.least)]).reverse()];
  const path = (list) => "M" + list.map(([a, b]) => a.toFixed(1) + "," + b.toFixed(1)).join("L");
  svg.append(node("path", { class: "band", d: path(edge) + "Z" }));
  svg.append(node("path", { class: "line", d: path(points.map((p) => [x(p.x), y(p.mean)])) }));
  for (const m of marks) svg.append(node("circle", { class: "mark", cx: x(m.x), cy: y(m.y), r: 4 }));
  const cursor = node("line", { class: "cursor", y1: top, y2: high - bottom, visibility: "hidden" });
  svg.append(cursor);
  const tip = node("div", { class: "tip" });
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), at = x0 + ((event.clientX - box.left - left) / (wide - left - right)) * (x1 - x0);
    const p = points.reduce((best, q) => (Math.abs(q.x - at) < Math.abs(best.x - at) ? q : best));
    cursor.setAttribute("x1", x(p.x));
    cursor.setAttribute("x2", x(p.x));
    cursor.setAttribute("visibility", "visible");
    const near = marks.filter((m) => Math.abs(x(m.x) - x(p.x)) < 8).map((m) => "\nvalidation loss " + short(m.y) + " at step " + m.x);
    showTip(tip, figure, event.clientX - box.left, y(p.mean), `step ${Math.round(p.x)}\nmean ${short(p.mean)}\nfrom ${short(p.least)} to ${short(p.most)}` + near.join(""));
  });
  svg.addEventListener("pointerleave", () => { tip.style.display = "none"; cursor.setAttribute("visibility", "hidden"); });
  const caption = node("figcaption", {}, curve.title + " ", node("small", {}, curve.unit + (scale.log ? ", logarithmic" : "") + (marks.length ? "; dots: validation loss" : "")));
  figure.replaceChildren(caption, svg, tip);
}

function curves() {
  const host = document.getElementById("charts"), drawn = [];
  for (const known of CURVES) {
    const points = columns(known);
    if (!points.length) continue;
    const marks = known.marks ? data.validations.map((v) => ({ x: v.step, y: number(v.loss) })).filter((m) => Number.isFinite(m.y)) : [];
    const curve = { ...known, points, marks }, figure = node("figure", { id: "curve-" + known.name });
    host.append(figure);
    drawn.push(() => drawCurve(curve, figure));
  }
  if (!drawn.length) host.append(node("p", { class: "note" }, "No trace was recorded."));
  const draw = () => drawn.forEach((one) => one());
  draw();
  return { draw };
}
