// Builds the elements of one episode. Text of a record becomes text nodes, never markup.

import { changes, diffLines, onlyBlock } from "./viewer_diff.js";

/** Lower bounds of a sampled token's probability; a less likely one has a stronger colour. */
const BANDS = [
  [0.9, "90 % or more"],
  [0.5, "50 to 90 %"],
  [0.2, "20 to 50 %"],
  [0.05, "5 to 20 %"],
  [0, "below 5 %"],
];

/** Preferred view of answers, kept from one episode to the next; used if the record allows it. */
let preferred = "tokens";

/** Number of token boxes so far; makes element ids unique. */
let boxes = 0;

/**
 * An element.
 * @param {string} tag
 * @param {Record<string, string | number | boolean | undefined>} attributes set where not undefined or false
 * @param {...(Node | string)} children
 */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children);
  return made;
}

/** Format a number: integers in full, others with three significant digits. */
export function number(value) {
  const digits = Number.isInteger(value) ? 21 : 3;
  return value.toLocaleString("en", { maximumSignificantDigits: digits }).replace("-", "\u2212");
}

/** Format a measurement with three significant digits and a true minus sign. */
function measured(value) {
  return Number(value.toPrecision(3)).toString().replace("-", "\u2212");
}

/** A count with its noun. */
export function plural(count, noun) {
  return `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
}

/**
 * A badge with the grader's verdict, or with the outcome if there is none.
 * @param {{verdict: string, outcome: string}} entry
 */
export function badge(entry) {
  const label = entry.outcome === "void" ? "VOID" : entry.verdict || entry.outcome.toUpperCase();
  const kind = entry.outcome === "solved" ? "good" : /^(VOID|TAMPERED|INFRA)$/.test(label) ? "bad" : "plain";
  return el("span", { class: `badge ${kind}` }, label);
}

/**
 * A whole episode.
 * @param {object} detail the episode as the server sends it
 * @param {{heading: string, notes: Node[]}} options id of the heading; elements below the facts
 * @returns {HTMLElement}
 */
export function episode(detail, { heading, notes }) {
  const { entry, steps } = detail;
  const legendAt = steps.findIndex((step) => step.tokens?.ids.length);
  const article = el("article", { "aria-labelledby": heading });
  article.append(
    el("header", {}, el("h2", { id: heading, tabindex: -1 }, entry.task), el("p", { class: "line" },
      el("strong", {}, entry.agent_or_phase), badge(entry), el("span", {}, `reward ${number(entry.reward)}`))),
    facts(detail),
    ...notes,
    ...verdict(detail),
    ...steps.map((step, index) => turn(step, index, index === legendAt)),
  );
  if (!steps.length) article.append(el("p", { class: "quiet" }, "The record holds no turn of this episode."));
  return article;
}

function facts({ entry, steps, share_s }) {
  const read = steps.reduce((sum, step) => sum + step.usage.prompt_tokens, 0);
  const place = [`group ${entry.group}`, `row ${entry.row}`, `seed ${entry.seed}`];
  if (entry.step !== null) place.unshift(`step ${entry.step}`);
  const cost = [plural(entry.turns, "turn")];
  if (read || entry.tokens) cost.push(`${plural(read, "token")} read`, `${number(entry.tokens)} written`);
  cost.push(`${number(entry.seconds)}\u00a0s waiting for the agent`);
  if (typeof share_s === "number") cost.push(`${number(share_s)}\u00a0s in all`);
  const where = `${entry.journal}.jsonl, line ${entry.line}`;
  const rows = [["Agent", `${entry.agent} in ${entry.env}`], ["Draws", place.join(" · ")], ["Cost", cost.join(" · ")]];
  return el("dl", {}, ...[...rows, ["Record", where]].flatMap(([name, text]) =>
    [el("dt", {}, name), el("dd", {}, text)]));
}

/** Results of grading: a table of checks, and all other fields of `info`. */
function verdict({ scores, info }) {
  const { error, evidence = {}, held_out: heldOut = {}, verdict: _, ...rest } = info;
  const found = [];
  if (error !== undefined) {
    found.push(el("aside", { class: "alarm" }, el("h3", {}, "Error"), el("pre", {}, asText(error))));
  }
  const names = [...new Set([...Object.keys(scores), ...Object.keys(evidence)])];
  if (names.length) found.push(checks("Checks", names.map((name) => [name, scores[name], evidence[name]])));
  const asked = Object.entries(heldOut).map(([name, score]) => [name, score, undefined]);
  if (asked.length) found.push(checks("Held-out checks", asked));
  for (const [name, value] of Object.entries(rest)) {
    found.push(el("section", {}, el("h3", {}, name), el("pre", {}, asText(value))));
  }
  return found;
}

function checks(title, rows) {
  const hasEvidence = rows.some(([, , evidence]) => evidence !== undefined);
  const head = ["Check", "Score", ...(hasEvidence ? ["Evidence"] : [])];
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title }, el("table", {},
    el("caption", {}, title),
    el("thead", {}, el("tr", {}, ...head.map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, ...rows.map(([name, score, evidence]) => el("tr", {},
      el("th", { scope: "row" }, name),
      el("td", {}, score === undefined ? "" : asText(score)),
      ...(hasEvidence ? [el("td", { class: "v" }, evidence === undefined ? "" : asText(evidence))] : []))))));
}

/** A value of unknown shape as text. */
function asText(value) {
  return typeof value === "string" ? value : typeof value === "number" ? number(value) : JSON.stringify(value, null, 1);
}

function turn(step, index, hasLegend) {
  const { usage, stop } = step;
  const cost = [`reward ${number(step.reward)}`];
  if (usage.prompt_tokens || usage.completion_tokens) {
    const cached = usage.cached_tokens ? ` (${number(usage.cached_tokens)} from a cache)` : "";
    cost.push(`${plural(usage.prompt_tokens, "token")} read${cached}, ${number(usage.completion_tokens)} written`);
  }
  if (usage.seconds) cost.push(`${number(usage.seconds)}\u00a0s`);
  const name = `Turn ${index + 1}`;
  return el("section", { class: "turn", "aria-label": name },
    el("header", {}, el("h3", {}, name), el("p", { class: "quiet" }, cost.join(" · "),
      ...(stop === "stop" ? [] : [" · ", el("strong", { class: "cut" }, `ended by: ${stop}`)]))),
    observation(step.observation, index === 0),
    action(step, name, hasLegend));
}

function observation(text, open) {
  const first = text.split("\n").find((line) => line.trim()) ?? "";
  return el("details", { class: "observation", open },
    el("summary", {}, el("span", {}, "Observation"), el("span", { class: "first" }, first)),
    plain(text));
}

/** Text with its diffs coloured; its text content is the text. */
function plain(text) {
  return lines(diffLines(text));
}

function lines(found) {
  const tags = { add: "ins", del: "del", mark: "span", plain: "span" };
  const pre = el("pre", {});
  if (found.every(({ kind }) => kind === "plain")) pre.append(found.map((line) => line.text).join(""));
  else pre.append(...found.map(({ text, kind }) => el(tags[kind], { class: `l ${kind}` }, text)));
  return pre;
}

/** The answer, with a button for every view that the record allows. */
function action(step, name, hasLegend) {
  const { tokens } = step;
  const views = { text: ["Text", () => [plain(step.text)]] };
  const [before, after] = [onlyBlock(step.observation), onlyBlock(step.text)];
  const changed = before === null || after === null ? null : changes(before, after);
  if (changed) {
    views.changes = ["Changes", () => {
      const shown = lines(changed);
      shown.classList.add("computed");
      return [note("Changes from the observation's code block to the answer's."), shown];
    }];
  }
  if (tokens?.ids.length) views.tokens = ["Tokens", () => [...(hasLegend ? [legend()] : []), ...sampled(tokens, name)]];
  const body = el("div", {});
  const group = el("div", { class: "views", role: "group", "aria-label": `${name}: show the answer as` });
  const show = () => {
    const spelled = preferred !== "tokens" || tokens?.pieces;
    const view = views[preferred] && (spelled || group.dataset.chosen) ? preferred : "text";
    for (const button of group.children) button.setAttribute("aria-pressed", String(button.dataset.view === view));
    body.replaceChildren(...views[view][1]());
  };
  for (const [view, [label]] of Object.entries(views)) {
    const button = el("button", { type: "button", "data-view": view }, label);
    button.addEventListener("click", () => {
      preferred = view;
      group.dataset.chosen = "yes";
      document.dispatchEvent(new Event("viewchange"));
    });
    group.append(button);
  }
  const section = el("div", { class: "action" },
    el("div", { class: "bar" }, el("h4", {}, "Action"), ...(group.children.length > 1 ? [group] : [])), body);
  const onChange = () => (section.isConnected ? show() : document.removeEventListener("viewchange", onChange));
  document.addEventListener("viewchange", onChange);
  show();
  return section;
}

function note(text) {
  return el("p", { class: "quiet note" }, text);
}

/** Sampled tokens, coloured by probability; arrow keys or the pointer show details of one. */
function sampled(tokens, name) {
  const { ids, logprobs, pieces, special } = tokens;
  const probabilities = logprobs.map(Math.exp);
  const described = ids.map((id, i) => [
    ...(pieces ? [pieces[i] ? JSON.stringify(pieces[i]) : "part of a character"] : []),
    `id ${id}`,
    `probability ${measured(probabilities[i])}`,
    `log-probability ${measured(logprobs[i])}`,
  ].join(", "));
  const prefix = `tokens-${(boxes += 1)}-`;
  const spans = ids.map((id, i) => {
    const band = BANDS.findIndex(([least]) => probabilities[i] >= least);
    const mark = special?.[i] ? " special" : pieces && !pieces[i] ? " part" : "";
    return el("span", {
      id: prefix + i, role: "option", class: `t p${band}${mark}`, title: described[i], "aria-label": described[i],
      "aria-selected": "false",
    }, pieces ? pieces[i] : `${id} `);
  });
  const box = el("div", { class: pieces ? "tokens" : "tokens ids", role: "listbox", tabindex: 0,
    "aria-label": `${name}: sampled tokens` }, ...spans);
  const mean = logprobs.reduce((sum, logprob) => sum + logprob, 0) / logprobs.length;
  const summary = `${plural(ids.length, "token")}, mean log-probability ${measured(mean)}`;
  const readout = el("p", { class: "quiet readout" }, summary);
  let current = -1;
  const pick = (index) => {
    spans[current]?.setAttribute("aria-selected", "false");
    current = index;
    spans[current]?.setAttribute("aria-selected", "true");
    if (current < 0) box.removeAttribute("aria-activedescendant");
    else box.setAttribute("aria-activedescendant", spans[current].id);
    readout.textContent = current < 0 ? summary : `Token ${current + 1} of ${ids.length}: ${described[current]}`;
  };
  box.addEventListener("pointerover", (event) => {
    const index = spans.indexOf(event.target);
    if (index >= 0) pick(index);
  });
  box.addEventListener("pointerleave", () => pick(-1));
  box.addEventListener("keydown", (event) => {
    const moves = { ArrowRight: current + 1, ArrowLeft: current - 1, Home: 0, End: spans.length - 1 };
    if (!(event.key in moves)) return;
    event.preventDefault();
    pick(Math.max(0, Math.min(spans.length - 1, moves[event.key])));
  });
  return [...(pieces ? [] : [note(`Ids only: ${tokens.why}.`)]), box, readout];
}

function legend() {
  return el("div", { class: "legend quiet" }, el("span", {}, "Probability when sampled:"),
    ...BANDS.map(([, label], band) => el("span", { class: `t p${band}` }, label)));
}
