// A video's timeline: pictures, the evidence of an answer as bars, and a mark at a second.

const SVG = "http://www.w3.org/2000/svg";
// bars at most; evidence of more frames is summed
const BARS = 240;

/** An element with attributes and children; texts become text nodes, never markup. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** A time as 1:05 or 1:01:05, with tenths where the second is no whole one. */
export function clock(seconds) {
  const tenths = Math.max(0, Math.round(seconds * 10));
  const [whole, tenth] = [Math.floor(tenths / 10), tenths % 10];
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  if (parts[0] === 0) parts.shift();
  const text = parts.map((part, at) => (at ? String(part).padStart(2, "0") : part)).join(":");
  return tenth ? `${text}.${tenth}` : text;
}

/** Seconds where each frame of the evidence begins, and where the last one ends. */
export function edges(seconds) {
  const last = seconds.length - 1;
  const gap = last > 0 ? seconds[last] - seconds[last - 1] : 0;
  return [...seconds, seconds[last] + gap];
}

/** The frames with the most attention per second, with their share of the attention to the video. */
export function topFrames(evidence, most) {
  const total = evidence.mass.reduce((sum, mass) => sum + mass, 0) || 1;
  const ends = edges(evidence.seconds);
  return evidence.seconds
    .map((second, at) => {
      const lasts = ends[at + 1] - second || 1;
      return { second, share: evidence.mass[at] / total, density: evidence.mass[at] / lasts };
    })
    .filter((frame) => frame.share >= 0.01)
    .sort((a, b) => b.density - a.density)
    .slice(0, most);
}

/** Draws the evidence of an answer, or with null only the ground, over the video's seconds. */
export function drawBars(svg, film, evidence, kept) {
  svg.replaceChildren();
  const place = (second) => (1000 * (second - film.start)) / (film.end - film.start || 1);
  for (const second of kept ?? []) {
    svg.append(shape("rect", { class: "kept", x: place(second), y: 94, width: 3, height: 6 }));
  }
  if (!evidence) return;
  const bars = binned(evidence);
  const largest = Math.max(...bars.map((bar) => bar.mass)) || 1;
  for (const { start, end, mass } of bars) {
    const height = (86 * mass) / largest;
    const width = Math.max(3, place(end) - place(start) - 1);
    if (height >= 0.2) {
      svg.append(shape("rect", { class: "bar", x: place(start), y: 90 - height, width, height }));
    }
  }
}

/** Neighbouring frames are one bar where there are more than fit. */
function binned({ seconds, mass }) {
  const ends = edges(seconds);
  const each = Math.ceil(seconds.length / BARS);
  const bars = [];
  for (let at = 0; at < seconds.length; at += each) {
    const stop = Math.min(at + each, seconds.length);
    const sum = mass.slice(at, stop).reduce((total, one) => total + one, 0);
    bars.push({ start: seconds[at], end: ends[stop], mass: sum });
  }
  return bars;
}

/** Labels of an axis at round seconds, at most `most` of them. */
export function drawAxis(axis, film, most) {
  const length = film.end - film.start || 1;
  const steps = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];
  const step = steps.find((one) => length / one <= most) ?? Math.ceil(length / most / 3600) * 3600;
  const labels = [];
  for (let at = Math.ceil(film.start / step) * step; at <= film.end + 1e-6; at += step) {
    const label = element("span", {}, clock(at));
    const share = (100 * (at - film.start)) / length;
    label.style.left = `${share}%`;
    // the first and the last one stay inside
    label.style.transform = `translateX(-${share}%)`;
    labels.push(label);
  }
  axis.replaceChildren(...labels);
}

function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
