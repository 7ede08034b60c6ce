// Pure functions on text: fenced blocks, diffs, and the changes between two blocks.

const FENCE = /^[ \t]*```[ \t]*(\w*)/;
const SEARCH = [/^<{5,9} ?SEARCH/, /^={5,9}[ \t]*$/, /^>{5,9} ?REPLACE/];
/** Limit for compared pairs of lines; more would take too long. */
const MAX_PAIRS = 4e6;

/**
 * The lines of a text, each with its line break, so that joined they are the text.
 * @param {string} text
 * @returns {string[]}
 */
export function linesOf(text) {
  return text.match(/[^\n]*\n|[^\n]+$/g) ?? [];
}

/**
 * The lines of a text with their part in a diff: of a fenced diff block, a bare unified diff, or a search/replace
 * block. Everything else is "plain".
 * @param {string} text
 * @returns {{text: string, kind: "plain" | "mark" | "add" | "del"}[]}
 */
export function diffLines(text) {
  const lines = linesOf(text);
  const bare = lines.map((line) => line.replace(/\n$/, ""));
  const kinds = lines.map(() => "plain");
  let at = 0;
  let mayEnd = true; // if one search block has no end, later ones have none either
  while (at < lines.length) {
    const fence = bare[at].match(FENCE);
    const opens = mayEnd && !fence && SEARCH[0].test(bare[at]);
    const replaced = opens ? searchReplace(bare, at) : null;
    if (opens) mayEnd = replaced !== null;
    if (fence) {
      let end = at + 1;
      while (end < lines.length && !FENCE.test(bare[end])) end += 1;
      const inside = bare.slice(at + 1, end);
      if (/^(diff|patch)$/i.test(fence[1])) {
        inside.forEach((line, i) => { kinds[at + 1 + i] = kindOf(line); });
      } else {
        const nested = diffLines(inside.join("\n") + "\n");
        inside.forEach((_, i) => { kinds[at + 1 + i] = nested[i].kind; });
      }
      at = end + 1;
    } else if (replaced) {
      const [start, middle, end] = replaced;
      for (let i = start; i <= end; i += 1) {
        kinds[i] = i === start || i === middle || i === end ? "mark" : i < middle ? "del" : "add";
      }
      at = end + 1;
    } else if (/^--- /.test(bare[at]) && /^\+\+\+ /.test(bare[at + 1] ?? "")) {
      let end = at;
      while (end < lines.length && /^([ +@\\-]|$)/.test(bare[end])) {
        kinds[end] = kindOf(bare[end]);
        end += 1;
      }
      at = end;
    } else {
      at += 1;
    }
  }
  return lines.map((line, i) => ({ text: line, kind: kinds[i] }));
}

function kindOf(line) {
  if (/^(@@|\+\+\+ |--- )/.test(line)) return "mark";
  return line.startsWith("+") ? "add" : line.startsWith("-") ? "del" : "plain";
}

/** Line numbers of the three marks of the search/replace block that begins at `at`; null if it does not end. */
function searchReplace(lines, at) {
  const middle = lines.findIndex((line, i) => i > at && SEARCH[1].test(line));
  const end = middle < 0 ? -1 : lines.findIndex((line, i) => i > middle && SEARCH[2].test(line));
  return end < 0 ? null : [at, middle, end];
}

/**
 * The only fenced block of a text that is code and no diff; null if there is none, or more than one.
 * @param {string} text
 * @returns {string | null}
 */
export function onlyBlock(text) {
  const found = [];
  let open = null;
  for (const line of linesOf(text)) {
    const fence = line.match(FENCE);
    if (!fence) open?.lines.push(line.replace(/\n?$/, "\n"));
    else if (open) open = null;
    else found.push((open = { language: fence[1], lines: [] }));
  }
  if (found.length !== 1 || /^(diff|patch)$/i.test(found[0].language)) return null;
  return found[0].lines.join("");
}

/**
 * Line diff of two blocks, by longest common subsequence. Null if they have only blank lines in common, or are too
 * long to compare.
 * @param {string} before
 * @param {string} after
 * @returns {{text: string, kind: "plain" | "add" | "del"}[] | null}
 */
export function changes(before, after) {
  const a = linesOf(before);
  const b = linesOf(after);
  if (a.length * b.length > MAX_PAIRS) return null;
  const width = b.length + 1;
  const longest = new Uint32Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      const at = i * width + j;
      longest[at] = a[i] === b[j] ? longest[at + width + 1] + 1 : Math.max(longest[at + width], longest[at + 1]);
    }
  }
  const found = [];
  let i = 0;
  let j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      found.push({ text: a[i], kind: "plain" });
      i += 1;
      j += 1;
    } else if (i < a.length && (j === b.length || longest[(i + 1) * width + j] >= longest[i * width + j + 1])) {
      found.push({ text: a[i], kind: "del" });
      i += 1;
    } else {
      found.push({ text: b[j], kind: "add" });
      j += 1;
    }
  }
  return found.some((line) => line.kind === "plain" && line.text.trim()) ? found : null;
}
