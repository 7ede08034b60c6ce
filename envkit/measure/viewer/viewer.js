// The list of episodes with its filters and keys. The address names the open episodes after its #.

import { badge, el, episode, number, plural } from "./viewer_episode.js";

const ROW_PX = 56; // height of a row in the style sheet
const OVERSCAN = 8;

const SORTS = {
  recorded: ["As recorded", null],
  task: ["Task", (a, b) => (a.task < b.task ? -1 : a.task > b.task ? 1 : 0)],
  reward: ["Reward, highest first", (a, b) => b.reward - a.reward],
  unrewarded: ["Reward, lowest first", (a, b) => a.reward - b.reward],
  turns: ["Most turns first", (a, b) => b.turns - a.turns],
  tokens: ["Most tokens first", (a, b) => b.tokens - a.tokens],
  seconds: ["Slowest first", (a, b) => b.seconds - a.seconds],
  step: ["Training step", (a, b) => (a.step ?? Infinity) - (b.step ?? Infinity) || 0],
};

const at = (id) => document.getElementById(id);
const [form, list, rows, count, reader] = ["filters", "list", "rows", "count", "reader"].map(at);

const state = {
  all: [], // all entries, in the order of the record
  byName: new Map(),
  sameTask: new Map(), // entries by task and row
  last: new Map(), // latest entry by episode, because a resumed run may play one again
  shown: [], // entries that pass the filters, in order
  cursor: 0, // index of the entry that the keys act on
  open: [], // entries on the page: one, or two side by side
  takesFocus: true, // true if the next opened episode takes the focus
};

const nameOf = (entry) => `${encodeURIComponent(entry.journal)}/${entry.line}`;
const visit = (entry) => JSON.stringify([entry.env, entry.task, entry.row]);
const keyOf = (entry) => JSON.stringify([entry.journal, entry.seed, entry.step, entry.group, entry.row, entry.task]);

async function ask(path) {
  const response = await fetch(path).catch(() => {
    throw new Error("The server does not answer; start envkit view again, and open the address that it prints.");
  });
  if (response.ok) return response.json();
  const { error } = await response.json().catch(() => ({ error: response.statusText }));
  throw new Error(error);
}

async function load() {
  const { run, facts, columns, episodes } = await ask("api/run");
  at("run").textContent = run;
  at("facts").textContent = [facts.environment, facts.model].filter(Boolean).join(" · ");
  at("facts").title = facts.command ?? "";
  state.all = episodes.map((values) => Object.fromEntries(columns.map((column, i) => [column, values[i]])));
  state.byName = new Map(state.all.map((entry) => [`${entry.journal}/${entry.line}`, entry]));
  state.sameTask = grouped(state.all, visit);
  state.last = new Map(state.all.map((entry) => [keyOf(entry), entry]));
  offer("agent_or_phase", "All", state.all.map((entry) => entry.agent_or_phase));
  offer("env", "All", state.all.map((entry) => entry.env));
  at("environments").hidden = form.elements.env.length < 3;
  offer("outcome", "All outcomes", state.all.map((entry) => entry.outcome));
  offer("verdict", "All verdicts", state.all.map((entry) => entry.verdict || "none"));
}

function grouped(items, by) {
  const found = new Map();
  for (const item of items) {
    const key = by(item);
    if (found.has(key)) found.get(key).push(item);
    else found.set(key, [item]);
  }
  return found;
}

/** Fill a filter with its values and the number of episodes for each. */
function offer(name, all, values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  const select = form.elements[name];
  const kept = select.value;
  const options = [...counts].map(([value, n]) => el("option", { value }, `${value} (${number(n)})`));
  select.replaceChildren(el("option", { value: "" }, all), ...options);
  select.value = counts.has(kept) ? kept : "";
}

// The list.

function filter() {
  const wanted = Object.fromEntries(new FormData(form));
  const words = wanted.task.toLowerCase().split(/\s+/).filter(Boolean);
  const bound = (name, otherwise) => (wanted[name] === "" ? otherwise : Number(wanted[name]));
  const turns = [bound("turnsFrom", 0), bound("turnsTo", Infinity)];
  const steps = [bound("stepFrom", -Infinity), bound("stepTo", Infinity)];
  const anyStep = wanted.stepFrom === "" && wanted.stepTo === "";
  const marked = state.shown[state.cursor];
  state.shown = state.all.filter((entry) =>
    (!wanted.agent_or_phase || entry.agent_or_phase === wanted.agent_or_phase) &&
    (!wanted.env || entry.env === wanted.env) &&
    (!wanted.outcome || entry.outcome === wanted.outcome) &&
    (!wanted.verdict || (entry.verdict || "none") === wanted.verdict) &&
    entry.turns >= turns[0] && entry.turns <= turns[1] &&
    (anyStep || (entry.step !== null && entry.step >= steps[0] && entry.step <= steps[1])) &&
    words.every((word) => entry.task.toLowerCase().includes(word)));
  const order = SORTS[wanted.sort]?.[1];
  if (order) state.shown.sort(order);
  const solved = state.shown.filter((entry) => entry.outcome === "solved").length;
  const isWhole = state.shown.length === state.all.length;
  const of = isWhole ? "" : `${number(state.shown.length)} of `;
  count.textContent = state.all.length
    ? `${of}${plural(state.all.length, "episode")}, ${number(solved)} solved`
    : "No episode is recorded yet.";
  at("reset").hidden = isWhole;
  rows.replaceChildren();
  list.hidden = !state.shown.length;
  rows.style.height = `${state.shown.length * ROW_PX}px`;
  state.cursor = Math.max(0, state.shown.indexOf(marked));
  reveal();
  draw();
}

/** Draw the visible rows; the others have no elements. */
function draw() {
  const first = Math.max(0, Math.floor(list.scrollTop / ROW_PX) - OVERSCAN);
  const end = Math.min(state.shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW_PX) + OVERSCAN);
  const there = new Map([...rows.children].map((row) => [Number(row.dataset.index), row]));
  for (const [index, row] of there) if (index < first || index >= end) row.remove();
  for (let index = first; index < end; index += 1) {
    const row = there.get(index) ?? rows.appendChild(rowOf(state.shown[index], index));
    row.classList.toggle("cursor", index === state.cursor);
    row.setAttribute("aria-selected", String(state.open.includes(state.shown[index])));
  }
  if (at(`row-${state.cursor}`)) list.setAttribute("aria-activedescendant", `row-${state.cursor}`);
  else list.removeAttribute("aria-activedescendant");
}

function rowOf(entry, index) {
  const facts = [entry.agent_or_phase, ...(entry.step === null ? [] : [`step ${entry.step}`]), `row ${entry.row}`];
  if (entry.turns !== 1) facts.push(plural(entry.turns, "turn"));
  if (entry.tokens) facts.push(plural(entry.tokens, "token"));
  const row = el("div", {
    id: `row-${index}`, role: "option", class: "row", "data-index": index, title: entry.task,
    "aria-posinset": index + 1, "aria-setsize": state.shown.length,
  }, el("span", { class: "task" }, entry.task), el("span", { class: "quiet" }, facts.join(" · ")),
  el("span", { class: "reward" }, number(entry.reward)), badge(entry));
  row.style.top = `${index * ROW_PX}px`;
  return row;
}

/** Scroll the list so that the cursor is in sight. */
function reveal() {
  const top = state.cursor * ROW_PX;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + ROW_PX > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW_PX - list.clientHeight;
}

function move(to) {
  state.cursor = Math.max(0, Math.min(state.shown.length - 1, to));
  reveal();
  draw();
}

// Open episodes.

/** Open the episodes in the address: one, or two side by side. */
async function open() {
  const address = location.hash;
  try {
    const wanted = address.slice(1).split("&").filter(Boolean).map(decodeURIComponent);
    const entries = wanted.map((name) => state.byName.get(name));
    if (entries.includes(undefined)) throw new Error(`This run has no episode ${wanted.join(" and ")}.`);
    const details = await Promise.all(entries.map((entry) => ask(`api/episodes/${nameOf(entry)}`)));
    if (location.hash !== address) return; // another one was opened meanwhile
    show(entries, details);
  } catch (error) {
    if (location.hash === address) show([], [], error);
  }
}

function show(entries, details, error) {
  const wasOpen = reader.contains(document.activeElement);
  state.open = entries;
  document.body.classList.toggle("reading", entries.length > 0);
  document.body.classList.toggle("comparing", entries.length > 1);
  document.title = entries.map((entry) => entry.task)[0] ?? at("run").textContent;
  reader.replaceChildren(...(error ? [complaint(error)] : entries.length ? opened(entries, details) : [overview()]));
  reader.scrollTop = 0;
  const takesFocus = entries.length > 0 && (wasOpen || state.takesFocus);
  state.takesFocus = false;
  const index = state.shown.indexOf(entries[0]);
  if (index >= 0) move(index);
  else draw();
  if (takesFocus) focusReader();
}

function focusReader() {
  reader.querySelector("h2")?.focus({ preventScroll: true });
  if (narrow.matches) reader.scrollIntoView();
}

function opened(entries, details) {
  return [
    el("nav", { class: "back", "aria-label": "Back" }, back(entries)),
    el("div", { class: "columns" }, ...details.map((detail, i) =>
      episode(detail, { heading: `heading-${i}`, notes: notesOn(entries[i], entries) }))),
  ];
}

function back(entries) {
  if (entries.length > 1) return el("a", { href: `#${nameOf(entries[0])}` }, "Close the comparison");
  return el("a", { href: "#" }, "Overview");
}

/** Links to the same task and row of other agents, and to a later playing of the same episode. */
function notesOn(entry, entries) {
  const found = [];
  const later = state.last.get(keyOf(entry));
  if (later !== entry) {
    found.push(el("p", { class: "alarm-line" }, "Played again later; ",
      el("a", { href: `#${nameOf(later)}` }, `line ${later.line} counts`), "."));
  }
  const others = (state.sameTask.get(visit(entry)) ?? []).filter((other) =>
    other.agent_or_phase !== entry.agent_or_phase && state.last.get(keyOf(other)) === other);
  if (entries.length === 1 && others.length) {
    found.push(el("p", { class: "others" }, el("span", { class: "quiet" }, "Same task, other agents: "),
      ...others.map((other) => el("span", {},
        el("a", { href: `#${nameOf(entry)}&${nameOf(other)}` }, other.agent_or_phase), badge(other)))));
  }
  return found;
}

function complaint(error) {
  return el("div", { class: "empty" }, el("aside", { class: "alarm", role: "alert" },
    el("h2", {}, "This cannot be shown"), el("p", {}, error.message)));
}

/** A table of the recorded episodes, by agent or phase. */
function overview() {
  const groups = grouped(state.all, (entry) => entry.agent_or_phase);
  const table = el("table", {},
    el("caption", {}, "Recorded episodes"),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Agent or phase"),
      ...["Episodes", "Solved", "Void", "Tasks"].map((name) => el("th", { scope: "col", class: "n" }, name)))),
    el("tbody", {}, ...[...groups].map(([name, entries]) => el("tr", {}, el("th", { scope: "row" }, filterButton(name)),
      ...[
        entries.length,
        entries.filter((entry) => entry.outcome === "solved").length,
        entries.filter((entry) => entry.outcome === "void").length,
        new Set(entries.map((entry) => entry.task)).size,
      ].map((n) => el("td", { class: "n" }, number(n)))))));
  return el("div", { class: "empty" }, el("h2", {}, "Choose an episode"),
    el("p", { class: "quiet" }, "Every turn as it was recorded: observation, answer and reward."),
    ...(state.all.length ? [table] : []));
}

function filterButton(name) {
  const button = el("button", { type: "button", class: "link", title: `Only episodes of ${name}` }, name);
  button.addEventListener("click", () => {
    form.elements.agent_or_phase.value = name;
    at("more").open = true;
    filter();
    list.focus();
  });
  return button;
}

function openAt(index) {
  const entry = state.shown[index];
  if (!entry) return;
  state.takesFocus = true;
  if (location.hash === `#${nameOf(entry)}`) focusReader();
  else location.hash = nameOf(entry);
}

// Keys and pointer.

const narrow = matchMedia("(max-width: 52rem)");

const page = () => Math.max(1, Math.floor(list.clientHeight / ROW_PX) - 1);

/** Actions of keys outside of fields. */
const KEYS = {
  j: () => { move(state.cursor + 1); list.focus(); },
  k: () => { move(state.cursor - 1); list.focus(); },
  "/": () => at("search").focus(),
  Escape: () => {
    if (state.open.length > 1) location.hash = nameOf(state.open[0]);
    list.focus();
  },
};

/** Further keys in the list. */
const LIST_KEYS = {
  ArrowDown: () => move(state.cursor + 1),
  ArrowUp: () => move(state.cursor - 1),
  PageDown: () => move(state.cursor + page()),
  PageUp: () => move(state.cursor - page()),
  Home: () => move(0),
  End: () => move(state.shown.length - 1),
  Enter: () => openAt(state.cursor),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const isField = event.target.matches("input, select, textarea");
  if (isField && !(event.key === "Escape" || (event.target === at("search") && event.key === "ArrowDown"))) return;
  const act = isField ? () => list.focus() : (event.target === list && LIST_KEYS[event.key]) || KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

list.addEventListener("click", (event) => {
  const row = event.target.closest(".row");
  if (!row) return;
  move(Number(row.dataset.index));
  openAt(state.cursor);
});

let drawing = false;
const drawSoon = () => {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    draw();
  });
};
list.addEventListener("scroll", drawSoon, { passive: true });
new ResizeObserver(drawSoon).observe(list);

form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", filter);
form.addEventListener("reset", () => setTimeout(filter));
at("reload").addEventListener("click", start);
addEventListener("hashchange", open);
addEventListener("beforeprint", () => {
  for (const details of reader.querySelectorAll("details")) details.open = true;
});

async function start() {
  try {
    await load();
  } catch (error) {
    show([], [], error);
    return;
  }
  filter();
  await open();
  document.documentElement.dataset.ready = "yes";
}

form.elements.sort.replaceChildren(...Object.entries(SORTS).map(([value, [label]]) => el("option", { value }, label)));
at("more").open = !narrow.matches;
start();
