// What the page was given, on one clock: seconds since the beginning of the run.
const data = JSON.parse(document.getElementById("data").textContent);
const number = (value) => (value === null || value === undefined ? NaN : Number(value));
const NAMES = ["read", "batch", "compute", "encode", "exchange", "send", "apply", "validate", "checkpoint", "missing"];
const style = getComputedStyle(document.documentElement);
const colour = (name) => style.getPropertyValue("--" + (NAMES.includes(name) ? name : "other")).trim();
const ink = (name) => style.getPropertyValue("--" + name).trim();
const dark = matchMedia("(prefers-color-scheme: dark)");

// A moment of a trace on the job's clock: straight lines between the readings, which takes drift out.
function clockOf(trace) {
  const readings = trace.clock.map((r) => ({ at: r.at, shift: r.time - r.at }));
  if (!readings.length) return (at) => at + trace.started;
  const first = readings[0], last = readings[readings.length - 1];
  return (at) => {
    if (at <= first.at) return at + first.shift;
    if (at >= last.at) return at + last.shift;
    let i = 1;
    while (readings[i].at < at) i += 1;
    const a = readings[i - 1], b = readings[i];
    return at + a.shift + ((b.shift - a.shift) * (at - a.at)) / (b.at - a.at);
  };
}

// Spans of a background exchange share their height with what was done meanwhile.
function unpackWindow(packed, time, talks) {
  const count = packed.length / 3;
  const phase = new Uint8Array(count), start = new Float64Array(count), end = new Float64Array(count);
  let micros = 0, from = Infinity, to = -Infinity;
  for (let i = 0; i < count; i += 1) {
    micros += packed[3 * i + 1];
    phase[i] = packed[3 * i];
    start[i] = time(micros / 1e6);
    end[i] = start[i] + packed[3 * i + 2] / 1e6;
    from = Math.min(from, start[i]);
    to = Math.max(to, end[i]);
  }
  const order = Array.from({ length: count }, (_, i) => i).sort((a, b) => start[a] - start[b]);
  const shared = new Uint8Array(count);
  let talk = -1;
  for (const i of order) {
    if (talks[phase[i]]) talk = talk >= 0 && end[talk] > end[i] ? talk : i;
    else if (talk >= 0 && start[i] < end[talk] - 2e-6) shared[i] = 1;
  }
  return { phase, start, end, from, to, count, shared, order };
}

const traced = data.workers.filter((worker) => worker.trace);
const clocks = traced.map((worker) => clockOf(worker.trace));
let origin = Math.min(...clocks.map((clock) => clock(0)));
if (data.started && data.started < origin && origin - data.started < 600) origin = data.started;
if (!Number.isFinite(origin)) origin = 0;
const workers = traced.map((worker, i) => {
  const { spans, steps } = worker.trace;
  const time = (at) => clocks[i](at) - origin;
  const talks = spans.phases.map((name) => name === "exchange" || name === "send");
  const windows = spans.windows.map((packed) => unpackWindow(packed, time, talks)).filter((w) => w.count);
  const width = spans.bins.width / 1e6;
  const bins = spans.bins.phases.map((values) => Float64Array.from(values, (v) => v / 1e6));
  const count = bins.length ? bins[0].length : 0;
  const end = Math.max(time(count ? (count - 1) * width : 0), ...windows.map((w) => w.to));
  return { rank: worker.rank, host: worker.host || "", phases: spans.phases, windows, width, bins, count, start: time(0), end, steps, time };
});
const end = Math.max(1e-3, ...workers.map((w) => w.end));

function seconds(value, step) {
  const digits = step === undefined ? (value < 1 ? 4 : value < 60 ? 2 : 0) : Math.max(0, Math.min(6, Math.ceil(-Math.log10(step) - 1e-9)));
  if (value < 60 || digits) return value.toFixed(digits) + " s";
  const whole = Math.round(value), h = Math.floor(whole / 3600), m = Math.floor(whole / 60) % 60, s = String(whole % 60).padStart(2, "0");
  return h ? h + ":" + String(m).padStart(2, "0") + ":" + s : m + ":" + s + " min";
}
function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e4) return (value / (size >= 1e9 ? 1e9 : size >= 1e6 ? 1e6 : 1e3)).toPrecision(3).replace(/\.?0+$/, "") + (size >= 1e9 ? " G" : size >= 1e6 ? " M" : " k");
  if (size < 1e-3) return value.toExponential(1).replace(".0e", "e");
  return String(Number(value.toPrecision(4)));
}
// Round numbers that divide a range into about so many parts.
function ticks(from, to, parts) {
  const rough = (to - from) / parts, power = 10 ** Math.floor(Math.log10(rough));
  const clock = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 36000, 86400];
  const step = [1, 2, 5, 10].map((k) => k * power).find((k) => k >= rough * 0.999);
  return { step, clockStep: rough > 10 ? clock.find((k) => k >= rough) || step : step };
}
function node(name, attributes, ...children) {
  const svg = ["svg", "path", "line", "text", "circle", "g", "rect"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  made.append(...children);
  return made;
}
function showTip(tip, stage, x, y, text) {
  tip.textContent = text;
  tip.style.display = "block";
  const width = tip.offsetWidth, room = stage.clientWidth;
  tip.style.left = Math.max(0, Math.min(x + 14, room - width)) + "px";
  tip.style.top = y + 16 + "px";
}
