// The timeline: a row for each worker, bins from afar, single spans from near.
function timeline() {
  const canvas = document.getElementById("canvas"), tip = document.getElementById("tip"), stage = canvas.parentElement;
  const brush = canvas.getContext("2d");
  const HEAD = 30, MARGIN = 4, COLUMN = 3, SPAN = 1.5; // pixels; from SPAN on single spans are drawn
  const began = Math.max(0, Math.min(end, ...workers.map((w) => w.start)) - 0.01 * end); // before that the cluster starts
  let view = { from: workers.length ? began : 0, to: end }, gutter = 0, rowHeight = 0, wide = 0;

  function fillLegend() {
    const there = NAMES.filter((name) => workers.some((w) => w.phases.includes(name)));
    if (workers.some((w) => w.phases.some((name) => !NAMES.includes(name)))) there.push("other");
    const items = there.map((name) => {
      const swatch = node("i", { class: "phase-" + name });
      return node("span", {}, swatch, name);
    });
    document.getElementById("legend").replaceChildren(...items);
  }
  const x = (time) => gutter + ((time - view.from) / (view.to - view.from)) * (wide - gutter - MARGIN);
  const timeAt = (px) => view.from + ((px - gutter) / (wide - gutter - MARGIN)) * (view.to - view.from);

  function size() {
    wide = stage.clientWidth;
    gutter = wide < 600 ? 34 : 128;
    const room = wide < 600 ? 420 : 560;
    rowHeight = Math.max(5, Math.min(34, Math.floor(room / Math.max(1, workers.length))));
    const high = HEAD + rowHeight * workers.length + 6, ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(wide * ratio);
    canvas.height = Math.round(high * ratio);
    canvas.style.height = high + "px";
    brush.setTransform(ratio, 0, 0, ratio, 0, 0);
    return high;
  }

  function draw() {
    const high = size();
    brush.clearRect(0, 0, wide, high);
    brush.font = "11px system-ui, sans-serif";
    brush.textBaseline = "middle";
    drawAxis(high);
    brush.save();
    brush.beginPath();
    brush.rect(gutter, 0, wide - gutter - MARGIN, high);
    brush.clip();
    workers.forEach((worker, i) => drawWorker(worker, HEAD + i * rowHeight));
    drawBefore();
    drawEpochs(high);
    drawIncidents(high);
    brush.restore();
    const every = Math.ceil(13 / rowHeight);
    brush.textAlign = "left";
    workers.forEach((worker, i) => {
      if (i % every) return;
      const y = HEAD + (i + 0.5) * rowHeight;
      brush.fillStyle = ink("ink");
      brush.fillText(String(worker.rank), 2, y, gutter - 6);
      if (gutter > 60 && worker.host) {
        brush.fillStyle = ink("soft");
        brush.fillText(worker.host.slice(0, 18), 26, y, gutter - 32);
      }
    });
  }

  function drawAxis(high) {
    const { clockStep: step } = ticks(view.from, view.to, Math.max(2, (wide - gutter) / 110));
    brush.strokeStyle = ink("grid");
    brush.fillStyle = ink("soft");
    brush.textAlign = "center";
    for (let t = Math.ceil(view.from / step) * step; t <= view.to; t += step) {
      const at = Math.round(x(t)) + 0.5;
      brush.beginPath();
      brush.moveTo(at, HEAD - 6);
      brush.lineTo(at, high);
      brush.stroke();
      if (at > gutter + 16 && at < wide - 24) brush.fillText(seconds(t, step), at, 8);
      else if (at >= gutter && at <= gutter + 16) { brush.textAlign = "left"; brush.fillText(seconds(t, step), gutter, 8); brush.textAlign = "center"; }
    }
  }

  function drawWorker(worker, top) {
    const y = top + 1, high = Math.max(3, rowHeight - 3), perSecond = (wide - gutter) / (view.to - view.from);
    const group = Math.max(1, Math.ceil(COLUMN / (worker.width * perSecond)));
    const first = Math.max(0, Math.floor((view.from - worker.start) / worker.width / group) * group - group);
    for (let i = first; i < worker.count; i += group) {
      const from = worker.time(i * worker.width), to = worker.time((i + group) * worker.width);
      if (to < view.from) continue;
      if (from > view.to) break;
      const left = x(from), width = Math.max(0.7, x(to) - left + 0.3), sums = [];
      for (let p = 0; p < worker.bins.length; p += 1) {
        let sum = 0;
        for (let k = i; k < Math.min(worker.count, i + group); k += 1) sum += worker.bins[p][k];
        sums.push(sum);
      }
      const whole = Math.max(group * worker.width, sums.reduce((a, b) => a + b, 0)); // more where phases overlap
      let used = 0;
      for (let p = 0; p < sums.length; p += 1) {
        if (!sums[p]) continue;
        brush.fillStyle = worker.colours[p];
        brush.fillRect(left, y + (used / whole) * high, width, (sums[p] / whole) * high);
        used += sums[p];
      }
    }
    for (const w of worker.windows) {
      if (w.to < view.from || w.from > view.to || ((w.to - w.from) * perSecond) / w.count < SPAN) continue;
      brush.fillStyle = ink("card");
      brush.fillRect(x(w.from), y - 0.5, x(w.to) - x(w.from), high + 1);
      for (const i of w.order) {
        if (w.end[i] < view.from || w.start[i] > view.to) continue;
        brush.fillStyle = worker.colours[w.phase[i]];
        brush.fillRect(x(w.start[i]), w.shared[i] ? y + high / 2 : y, Math.max(0.4, x(w.end[i]) - x(w.start[i])), w.shared[i] ? high / 2 : high);
      }
    }
  }

  function drawBefore() {
    const text = "the cluster starts the workers", from = Math.max(gutter, x(0)), to = x(began);
    if (to - from < brush.measureText(text).width + 20) return;
    brush.fillStyle = ink("soft");
    brush.textAlign = "center";
    brush.fillText(text, (from + to) / 2, HEAD + (rowHeight * workers.length) / 2);
  }

  function drawEpochs(high) {
    const leader = workers[0];
    if (!leader) return;
    const { epoch, end: ends } = leader.steps;
    brush.strokeStyle = ink("ink");
    brush.fillStyle = ink("soft");
    brush.textAlign = "left";
    let free = -Infinity;
    for (let i = 0; i < epoch.length; i += 1) {
      if (i && epoch[i] === epoch[i - 1]) continue;
      const at = i ? x(leader.time(ends[i - 1])) : x(leader.start);
      if (at < gutter - 1 || at > wide) continue;
      brush.setLineDash([2, 3]);
      brush.beginPath();
      brush.moveTo(at, 16);
      brush.lineTo(at, high);
      if (i) brush.stroke();
      brush.setLineDash([]);
      const text = "epoch " + (epoch[i] + 1);
      if (at > free) { brush.fillText(text, at + 3, 22); free = at + brush.measureText(text).width + 12; }
    }
  }

  function drawIncidents(high) {
    if (!data.started) return;
    brush.strokeStyle = brush.fillStyle = ink("alarm");
    for (const incident of data.incidents) {
      const at = x(incident.seconds + data.started - origin);
      brush.beginPath();
      brush.moveTo(at - 5, 14);
      brush.lineTo(at + 5, 14);
      brush.lineTo(at, 22);
      brush.fill();
      brush.fillRect(at - 0.75, 14, 1.5, high - 14);
    }
  }

  function clamp(from, to) {
    const least = Math.min(1e-4, end), slack = end * 0.02;
    const width = Math.max(least, Math.min(end + 2 * slack, to - from));
    from = Math.max(-slack, Math.min(end + slack - width, from));
    view = width >= end ? { from: 0, to: end } : { from, to: from + width };
    requestAnimationFrame(draw);
  }
  function zoom(factor, px) {
    const at = timeAt(px === undefined ? (gutter + wide) / 2 : px);
    clamp(at - (at - view.from) * factor, at + (view.to - at) * factor);
  }
  const move = (part) => clamp(view.from + part * (view.to - view.from), view.to + part * (view.to - view.from));

  function describe(px, py) {
    const t = timeAt(px), lines = [];
    if (data.started) for (const incident of data.incidents) {
      if (Math.abs(x(incident.seconds + data.started - origin) - px) < 6) lines.push(seconds(incident.seconds) + "  " + incident.text);
    }
    const worker = workers[Math.floor((py - HEAD) / rowHeight)];
    if (!worker || px < gutter) return lines.join("\n");
    lines.push("worker " + worker.rank + (worker.host ? " on " + worker.host : ""));
    const perSecond = (wide - gutter) / (view.to - view.from);
    for (const w of worker.windows) {
      if (t < w.from || t > w.to || ((w.to - w.from) * perSecond) / w.count < SPAN) continue;
      const here = [];
      for (let i = 0; i < w.count; i += 1) if (w.start[i] <= t && t <= w.end[i]) {
        here.push(worker.phases[w.phase[i]] + ": " + ((w.end[i] - w.start[i]) * 1e3).toFixed(3) + " ms from " + w.start[i].toFixed(6) + " s");
      }
      if (here.length) return [...lines, ...here].join("\n");
      lines.push("between phases at " + t.toFixed(6) + " s");
      return lines.join("\n");
    }
    const i = Math.floor((t - worker.start) / worker.width);
    if (i < 0 || i >= worker.count) return lines.join("\n");
    const group = Math.max(1, Math.ceil(COLUMN / (worker.width * perSecond))), from = Math.floor(i / group) * group;
    lines.push(seconds(worker.time(from * worker.width)) + " to " + seconds(worker.time((from + group) * worker.width)));
    worker.phases.forEach((name, p) => {
      let sum = 0;
      for (let k = from; k < Math.min(worker.count, from + group); k += 1) sum += worker.bins[p][k];
      const share = (100 * sum) / (group * worker.width);
      if (share >= 0.05) lines.push(name + ": " + share.toFixed(1) + " %");
    });
    return lines.join("\n");
  }

  const fingers = new Map();
  const place = (event) => { const box = canvas.getBoundingClientRect(); return { x: event.clientX - box.left, y: event.clientY - box.top }; };
  canvas.addEventListener("pointerdown", (event) => { fingers.set(event.pointerId, place(event)); canvas.setPointerCapture(event.pointerId); });
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, (event) => fingers.delete(event.pointerId));
  canvas.addEventListener("pointermove", (event) => {
    const now = place(event), before = fingers.get(event.pointerId);
    if (before) {
      const others = [...fingers.entries()].filter(([id]) => id !== event.pointerId);
      if (others.length) {
        const other = others[0][1], was = Math.abs(before.x - other.x), is = Math.abs(now.x - other.x);
        if (was > 8 && is > 8) zoom(was / is, (now.x + other.x) / 2);
      } else move(-(now.x - before.x) / (wide - gutter));
      fingers.set(event.pointerId, now);
      tip.style.display = "none";
      return;
    }
    const text = describe(now.x, now.y);
    if (text) showTip(tip, stage, now.x, now.y, text);
    else tip.style.display = "none";
  });
  canvas.addEventListener("pointerleave", () => { tip.style.display = "none"; });
  canvas.addEventListener("wheel", (event) => {
    if (event.ctrlKey || event.metaKey) zoom(Math.exp(event.deltaY * 0.003), place(event).x);
    else if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) move(event.deltaX / (wide - gutter));
    else return;
    event.preventDefault();
  }, { passive: false });
  canvas.addEventListener("dblclick", (event) => zoom(0.4, place(event).x));
  canvas.addEventListener("keydown", (event) => {
    const act = { ArrowLeft: () => move(-0.1), ArrowRight: () => move(0.1), "+": () => zoom(0.6), "=": () => zoom(0.6), "-": () => zoom(1 / 0.6), 0: () => clamp(0, end) }[event.key];
    if (act) { act(); event.preventDefault(); }
  });
  document.getElementById("zoom-in").addEventListener("click", () => zoom(0.5));
  document.getElementById("zoom-out").addEventListener("click", () => zoom(2));
  document.getElementById("zoom-all").addEventListener("click", () => clamp(0, end));
  const paint = () => { for (const worker of workers) worker.colours = worker.phases.map(colour); draw(); };
  fillLegend();
  paint();
  return { paint, draw, clamp };
}
