// The page: a video is picked, questions are asked, and what the model looked at is shown.

import { Trouble, call, stream, useKey } from "./client.js";
import { clock, drawAxis, drawBars, element, topFrames } from "./timeline.js";

const at = (id) => document.getElementById(id);
// pixels of the longer side: of the frame that is shown, and of the small ones
const LARGE = 640;
const SMALL = 240;
const LOOKS = 6;

let start = null;
// what is shown now: {url, title, film, frames, turns, shown, ends}; another video is another object
let video = null;
// ends the answer that is being made
let answering = null;

// ---- the start

async function begin() {
  const needed = document.body.dataset.key === "needed";
  at("gate").hidden = !needed;
  if (needed) at("key").focus();
  else await enter();
}

async function enter() {
  try {
    start = await call("/page/start");
  } catch (trouble) {
    at("gate-trouble").textContent = trouble.message;
    at("gate").hidden = false;
    return;
  }
  at("gate").hidden = true;
  at("main").hidden = false;
  at("model").textContent = start.model;
  at("remember").checked = start.remember;
  at("limit").textContent = `A video or an image, up to ${bytes(start.upload_bytes)}`;
  forget();
  listVideos();
}

function listVideos() {
  const rows = start.videos.map(({ name, bytes: size }) => {
    const button = element(
      "button",
      { type: "button", className: "video", ariaPressed: "false" },
      element("span", { className: "name" }, name),
      element("span", { className: "size" }, bytes(size)),
    );
    button.addEventListener("click", () => pick(name, name, button));
    return element("li", {}, button);
  });
  at("list").replaceChildren(...rows);
  if (rows.length === 1) rows[0].firstChild.click();
  const none = "The folder of this server holds no videos.";
  const more = `Only the first ${rows.length} videos are listed.`;
  at("list-note").textContent = rows.length === 0 ? none : start.complete ? "" : more;
}

// ---- a video

async function pick(url, title, button = null) {
  answering?.abort();
  video?.ends.abort();
  const film = { start: 0, end: 0 };
  video = { url, title, film, frames: new Map(), turns: [], shown: -1, ends: new AbortController() };
  const mine = video;
  for (const other of document.querySelectorAll(".video")) {
    other.ariaPressed = String(other === button);
  }
  at("pick-trouble").textContent = "";
  at("film-title").textContent = title;
  at("facts").textContent = "Opening it …";
  for (const id of ["timeline", "evidence", "plan", "frame"]) at(id).hidden = true;
  say("frame-caption", "");
  forget();
  try {
    mine.film = await patiently(() => call("/page/film", { url }, mine.ends.signal));
    if (mine !== video) return;
    showFacts();
    openChat(true);
    await showStrip(mine);
  } catch (trouble) {
    if (mine !== video || trouble.name === "AbortError") return;
    at("facts").textContent = "";
    at("pick-trouble").textContent = trouble.message;
  }
}

async function choose(file) {
  const trouble = at("pick-trouble");
  trouble.textContent = "";
  if (file.size > start.upload_bytes) {
    const size = `${file.name} has ${bytes(file.size)}`;
    trouble.textContent = `${size}: this server takes up to ${bytes(start.upload_bytes)}.`;
    return;
  }
  if (file.size === 0) {
    trouble.textContent = `${file.name} is empty.`;
    return;
  }
  const type = /^(video|image)\/[\w.+-]+$/.test(file.type) ? file.type : "video/unknown";
  let read;
  try {
    read = await dataOf(file);
  } catch {
    trouble.textContent = `${file.name} cannot be read.`;
    return;
  }
  await pick(`data:${type};base64,${read}`, file.name);
}

function dataOf(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = reject;
    reader.readAsDataURL(file);
  });
}

function showFacts() {
  const { film } = video;
  const [height, width] = film.size;
  const length = film.end - film.start;
  const looks =
    film.asked === film.frames ? "looks at all" : `looks at ${number(film.asked)} (${film.policy})`;
  at("facts").textContent = [
    film.frames > 1 ? clock(length) : "An image",
    `${width} × ${height}`,
    ...(film.frames > 1 ? [`${number(film.frames)} frames, the model ${looks}`] : []),
  ].join(" · ");
  at("timeline").hidden = film.frames < 2;
  const scrub = at("scrub");
  [scrub.min, scrub.max] = [film.start, film.end];
  drawBars(at("bars"), film, null);
  drawAxis(at("axis"), film, at("timeline").clientWidth < 500 ? 4 : 8);
  showPlan(film.plan);
}

async function showStrip(mine) {
  const { film } = mine;
  const count = film.frames < 2 ? 0 : Math.min(film.frames, innerWidth < 700 ? 6 : 10);
  const each = (film.end - film.start) / (count || 1);
  const seconds = Array.from({ length: count }, (_, n) => film.start + (n + 0.5) * each);
  at("strip").replaceChildren();
  await show(mine, film.start);
  if (count === 0) return;
  const pictures = await framesAt(mine, seconds, SMALL);
  if (mine !== video) return;
  at("strip").replaceChildren(...pictures.map(({ image }) => element("img", { src: image, alt: "" })));
}

/** Shows the frame at a second; while one is fetched, only the last second that was asked for
 * is fetched next. */
async function show(mine, second) {
  mine.wanted = second;
  markAt(mine, second);
  if (mine.showing) return;
  mine.showing = true;
  try {
    while (mine === video && mine.wanted !== mine.shown) {
      const wanted = mine.wanted;
      const [picture] = await framesAt(mine, [wanted], LARGE);
      if (mine !== video) return;
      mine.shown = wanted;
      at("frame").src = picture.image;
      at("frame").hidden = false;
      at("frame").alt = `Frame at ${clock(picture.second)}`;
      at("frame-caption").textContent = mine.film.frames > 1 ? clock(picture.second) : "";
    }
  } finally {
    mine.showing = false;
  }
}

function markAt(mine, second) {
  const { film } = mine;
  const share = (second - film.start) / (film.end - film.start || 1);
  at("mark").style.left = `${100 * Math.min(1, Math.max(0, share))}%`;
  at("scrub").value = second;
  at("scrub").ariaValueText = clock(second);
}

/** Frames nearest to some seconds, each fetched once. */
async function framesAt(mine, seconds, side) {
  const name = (second) => `${side} ${second}`;
  const missing = seconds.filter((second) => !mine.frames.has(name(second)));
  if (missing.length > 0) {
    const body = { url: mine.url, seconds: missing, side };
    const told = await patiently(() => call("/page/frames", body, mine.ends.signal));
    told.frames.forEach((frame, n) => mine.frames.set(name(missing[n]), frame));
  }
  return seconds.map((second) => mine.frames.get(name(second)));
}

/** Tries again where the server has no place for now. */
async function patiently(request) {
  for (let tries = 0; ; tries += 1) {
    try {
      return await request();
    } catch (trouble) {
      if (trouble.status !== 429 || tries === 4) throw trouble;
      await new Promise((resolve) => setTimeout(resolve, 1000 * (trouble.retry || 1)));
    }
  }
}

function showPlan(plan) {
  const work = (part) => Object.values(plan.flops[part]).reduce((sum, one) => sum + one, 0);
  const reading = work("encoder") + work("projector") + work("open");
  const share = Math.round((100 * work("question")) / (reading + work("question") || 1));
  const floor = (...parts) =>
    plan.floors ? duration(1000 * parts.reduce((sum, part) => sum + plan.floors[part], 0)) : "";
  const rows = [
    ["Prompt, first to last layer", `${number(plan.tokens[0])} → ${number(plan.tokens.at(-1))} tokens`],
    ["Weights", bytes(plan.exact.weights)],
    ["The video, once read", bytes(plan.exact.session)],
    ["A question while it is answered", bytes(plan.exact.forks)],
    ["Reserve, an estimate", bytes(plan.reserve)],
    ["At the peak, at most", bytes(plan.need)],
    ["Reading the video", work$(reading), floor("encoder", "projector", "open")],
    ["A question", work$(work("question")), floor("question")],
    ["A word of the answer", work$(work("step")), floor("step")],
  ].map((row) => (plan.floors ? [...row, "", ""].slice(0, 3) : row.slice(0, 2)));
  const again = `a question is ${share} % of the work of reading and asking`;
  at("plan-summary").textContent = `Plan: at most ${bytes(plan.need)}; ${again}`;
  const heads = plan.floors ? ["", "needs", "takes at least"] : ["", "needs"];
  say("plan-body", table(heads, rows));
  at("plan").hidden = false;
}

// ---- the chat

function openChat(ready) {
  at("question").disabled = at("send").disabled = !ready;
  at("question").placeholder = ready ? "Ask about the video" : "Pick a video first";
  const known = ready && video.turns.length === 0 && Object.hasOwn(start.examples, video.url);
  const shown = known ? start.examples[video.url] : [];
  at("examples").replaceChildren(
    ...shown.map((text) => {
      const button = element("button", { type: "button", className: "quiet small" }, text);
      button.addEventListener("click", () => ask(text));
      return button;
    }),
  );
}

function forget() {
  if (video) video.turns = [];
  at("anew").hidden = true;
  at("evidence").hidden = true;
  say("log", start.note ? element("p", { className: "note" }, start.note) : "");
  openChat(false);
}

/** What is sent: the server finds the session of the video that the first message names. */
function messages(turns, question) {
  const said = turns.flatMap((turn) => [
    { role: "user", content: turn.question },
    { role: "assistant", content: turn.answer },
  ]);
  said.push({ role: "user", content: question });
  const part = { type: "video_url", video_url: { url: video.url } };
  said[0] = { role: "user", content: [part, { type: "text", text: said[0].content }] };
  return said;
}

async function ask(question) {
  if (!video || answering || !question.trim()) return;
  const mine = video;
  answering = new AbortController();
  const turn = { question, answer: "", view: addTurn(question) };
  busy(true);
  const since = performance.now();
  try {
    const body = {
      model: start.model,
      messages: messages(at("remember").checked ? mine.turns : [], question),
      stream: true,
      timeviper: { evidence: true },
    };
    for await (const event of stream("/v1/chat/completions", body, answering.signal)) {
      turn.answer += event.choices[0]?.delta.content ?? "";
      turn.view.text.textContent = turn.answer;
      turn.told = event.timeviper ?? turn.told;
      toEnd();
    }
    if (mine !== video) return;
    turn.answer = turn.answer.trim();
    turn.view.text.textContent = turn.answer || "(no words)";
    mine.turns.push(turn);
    finish(mine, turn, performance.now() - since);
  } catch (trouble) {
    if (mine === video) fail(turn, trouble);
  } finally {
    answering = null;
    busy(false);
  }
}

function addTurn(question) {
  at("examples").replaceChildren();
  at("question").value = "";
  const text = element("p", { className: "text" });
  const answer = element("div", { className: "answer waiting" }, text);
  const whole = element(
    "article",
    { className: "turn" },
    element("p", { className: "asked" }, question),
    answer,
  );
  at("log").append(whole);
  toEnd();
  return { whole, answer, text };
}

function finish(mine, turn, took) {
  const { told } = turn;
  turn.view.answer.classList.remove("waiting");
  const first = told.stages[0]?.before;
  const last = told.stages.at(-1)?.after;
  const facts = [
    duration(took),
    told.held ? "the video was read before" : "the video was read for this",
    ...(told.stages.length ? [`${number(last)} of ${number(first)} vision tokens kept`] : []),
  ];
  const button = element("button", { type: "button", className: "quiet small" }, "Where it looked");
  button.addEventListener("click", () => showEvidence(mine, turn));
  turn.button = button;
  turn.view.answer.append(
    element("p", { className: "hint" }, facts.join(" · ")),
    ...told.notes.map((note) => element("p", { className: "hint" }, note)),
    button,
    details(told),
  );
  at("anew").hidden = false;
  toEnd();
  showEvidence(mine, turn);
}

function details(told) {
  const rows = (stops) =>
    stops
      .filter((stop) => stop.milliseconds > 0)
      .map((stop) => [stop.name, stop.shape, stop.tokens, duration(stop.milliseconds)]);
  const heads = ["stop", "output", "tokens", "time"];
  return element(
    "details",
    {},
    element("summary", {}, "How it was answered"),
    element("h4", {}, "This question"),
    table(heads, rows(told.stops.question)),
    element("h4", {}, told.held ? "The video, read before" : "The video"),
    table(heads, rows(told.stops.video)),
    element("h4", {}, "Vision tokens"),
    told.stages.length
      ? table(
          ["stage", "before", "after"],
          told.stages.map((s) => [`before layer ${s.layer}`, number(s.before), number(s.after)]),
        )
      : element("p", { className: "hint" }, "This model keeps all of them."),
  );
}

function fail(turn, trouble) {
  turn.view.answer.classList.remove("waiting");
  if (trouble.name === "AbortError") {
    turn.view.answer.append(element("p", { className: "hint" }, "Stopped."));
    return;
  }
  const words = trouble instanceof Trouble ? trouble.message : "The page has failed.";
  const again = element("button", { type: "button", className: "quiet small" }, "Try again");
  again.addEventListener("click", () => {
    if (answering) return;
    turn.view.whole.remove();
    ask(turn.question);
  });
  turn.view.answer.append(element("p", { className: "trouble" }, words), again);
  if (trouble.retry > 0) {
    again.disabled = true;
    setTimeout(() => (again.disabled = false), 1000 * trouble.retry);
  }
  toEnd();
  if (!(trouble instanceof Trouble)) throw trouble;
}

function busy(now) {
  at("log").ariaBusy = String(now);
  at("send").textContent = now ? "Stop" : "Ask";
  at("anew").disabled = now;
}

function toEnd() {
  at("log").scrollTop = at("log").scrollHeight;
}

// ---- the evidence of an answer

async function showEvidence(mine, turn) {
  for (const other of mine.turns) other.button.ariaPressed = String(other === turn);
  const { evidence, kept_seconds: kept } = turn.told;
  at("evidence").hidden = false;
  const looks = evidence ? topFrames(evidence, LOOKS) : [];
  drawBars(at("bars"), mine.film, evidence, kept);
  const said = looks.map((look) => `${clock(look.second)} (${percent(look.share)})`).join(", ");
  at("bars").setAttribute("aria-label", said ? `Attention over time, most at ${said}` : "");
  say("looks");
  if (looks.length === 0) {
    at("evidence-note").textContent = evidence
      ? "It looked at the words alone."
      : "No stage of this model chooses by attention, so there is no evidence.";
    return;
  }
  at("evidence-note").textContent =
    `Bars: attention to each second when it chose what to keep for “${turn.question}”. ` +
    "Ticks: frames of which something was kept. The answer may come from other frames, too.";
  try {
    const seconds = looks.map((look) => look.second);
    const pictures = await framesAt(mine, seconds, SMALL);
    if (mine !== video || turn.button.ariaPressed !== "true") return;
    say("looks", ...looks.map((look, n) => lookOf(mine, look, pictures[n])));
    await show(mine, seconds[0]);
  } catch (trouble) {
    if (mine !== video || trouble.name === "AbortError") return;
    at("evidence-note").textContent = trouble.message;
  }
}

function lookOf(mine, look, picture) {
  const button = element(
    "button",
    { type: "button", className: "look" },
    element("img", { src: picture.image, alt: `Frame at ${clock(picture.second)}` }),
    element("span", {}, element("b", {}, clock(look.second)), ` ${percent(look.share)}`),
  );
  button.addEventListener("click", () => show(mine, look.second));
  return element("li", {}, button);
}

// ---- words and numbers

const number = (value) => value.toLocaleString("en");
const percent = (share) => `${Math.round(100 * share)} %`;

function bytes(count) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 1000 && unit < 4) [count, unit] = [count / 1000, unit + 1];
  return `${unit && count < 10 ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
}

function work$(flops) {
  const units = ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"];
  let unit = 0;
  while (flops >= 1000 && unit < 5) [flops, unit] = [flops / 1000, unit + 1];
  return `${flops < 10 ? flops.toFixed(1) : Math.round(flops)} ${units[unit]}`;
}

function duration(milliseconds) {
  if (milliseconds < 10) return `${milliseconds.toFixed(1)} ms`;
  if (milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  return `${(milliseconds / 1000).toFixed(1)} s`;
}

function table(heads, rows) {
  const cells = (kind, row) => row.map((cell) => element(kind, {}, cell));
  return element(
    "div",
    { className: "table", tabIndex: 0 },
    element(
      "table",
      {},
      element("thead", {}, element("tr", {}, ...cells("th", heads))),
      element("tbody", {}, ...rows.map((row) => element("tr", {}, ...cells("td", row)))),
    ),
  );
}

/** Replaces what an element holds. */
function say(id, ...children) {
  at(id).replaceChildren(...children);
}

// ---- events

at("gate").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(at("key").value.trim());
  enter();
});
at("file").addEventListener("change", ({ target }) => {
  if (target.files[0]) choose(target.files[0]);
  target.value = "";
});
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  // a file that misses the box must not replace the page
  addEventListener(kind, (event) => event.preventDefault());
  at("drop").addEventListener(kind, (event) => {
    at("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) choose(event.dataTransfer.files[0]);
  });
}
at("scrub").addEventListener("input", ({ target }) => {
  const mine = video;
  show(mine, Number(target.value)).catch((trouble) => {
    if (mine === video && trouble.name !== "AbortError") {
      at("frame-caption").textContent = trouble.message;
    }
  });
});
at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (answering) answering.abort();
  else ask(at("question").value);
});
at("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!answering) ask(at("question").value);
});
at("anew").addEventListener("click", () => {
  forget();
  drawBars(at("bars"), video.film, null);
  openChat(true);
  at("question").focus();
});

begin();
