// Light Markdown: paragraphs, headings, lists, quotes, rules, fenced code; bold, italics, inline code. The text becomes nodes whose
// content is set as text, never as HTML, so that nothing a model says can become markup.
import { copyButton, element } from "./dom.js";

const MAX_DEPTH = 6; // of lists and quotes in each other; what is deeper stays text
const FENCE = /^ {0,3}(`{3,}|~{3,})(.*)$/;
const HEADING = /^(#{1,6}) +(.*)$/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?/;
const MARK = /`+|\*\*|\*/g;
const ITEM = /^( *)([-*+]|\d{1,9}[.)]) +(?=\S)/;

const drawn = new WeakMap(); // node -> the block that it shows

/** Shows `text` in `container`. Blocks that are there already stay as they are, so that a growing text costs only its last block. */
export function showMarkdown(container, text) {
  const blocks = parseBlocks(text.split("\n"));
  blocks.forEach((block, i) => {
    const key = JSON.stringify(block);
    const old = container.children[i];
    if (old && drawn.get(old) === key) return;
    const node = blockNode(block);
    drawn.set(node, key);
    if (old) old.replaceWith(node);
    else container.append(node);
  });
  while (container.children.length > blocks.length) container.lastElementChild.remove();
}

/** Cuts lines into blocks: { type, … } with `text`, `items` (lists of blocks) or `blocks`. */
export function parseBlocks(lines, depth = 0) {
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    const [block, next] = readBlock(lines, at, depth);
    if (block) blocks.push(block);
    at = next;
  }
  return blocks;
}

function readBlock(lines, at, depth) {
  const line = lines[at];
  const fence = fenceOf(line);
  if (fence) return readCode(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) return [{ type: "heading", level: heading[1].length, text: heading[2] }, at + 1];
  if (RULE.test(line)) return [{ type: "rule" }, at + 1];
  if (depth < MAX_DEPTH && QUOTE.test(line)) return readQuote(lines, at, depth);
  if (depth < MAX_DEPTH && ITEM.test(line)) return readList(lines, at, depth);
  if (line.trim() === "") return [null, at + 1];
  return readParagraph(lines, at, depth);
}

function fenceOf(line) {
  const match = FENCE.exec(line);
  if (!match || (match[1][0] === "`" && match[2].includes("`"))) return null;
  return { mark: match[1], language: match[2].trim().split(/\s/)[0] };
}

function readCode(lines, at, { mark, language }) {
  const isEnd = (line) => line.trim().startsWith(mark) && line.trim() === mark[0].repeat(line.trim().length);
  let end = at + 1;
  while (end < lines.length && !isEnd(lines[end])) end++;
  return [{ type: "code", language, text: lines.slice(at + 1, end).join("\n") }, end + 1];
}

function readQuote(lines, at, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end++;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return [{ type: "quote", blocks: parseBlocks(inner, depth + 1) }, end];
}

function readList(lines, at, depth) {
  const [, margin, mark] = ITEM.exec(lines[at]);
  const isOrdered = /\d/.test(mark);
  const items = [];
  let end = at;
  while (end < lines.length) {
    const match = ITEM.exec(lines[end]);
    if (!match || match[1].length > margin.length + 1 || /\d/.test(match[2]) !== isOrdered) break;
    let stop = end + 1;
    while (stop < lines.length && belongsToItem(lines, stop, margin.length)) stop++;
    const inner = [lines[end].slice(match[0].length), ...lines.slice(end + 1, stop).map((line) => dedent(line, match[0].length))];
    items.push(parseBlocks(inner, depth + 1));
    end = stop;
    while (end < lines.length && lines[end].trim() === "" && ITEM.test(lines[end + 1] ?? "")) end++;
  }
  return [{ type: "list", start: isOrdered ? parseInt(mark) : null, items }, end];
}

function belongsToItem(lines, at, margin) {
  const line = lines[at].trim() === "" ? (lines[at + 1] ?? "") : lines[at];
  return line.trim() !== "" && line.search(/\S/) > margin + 1;
}

function dedent(line, width) {
  return line.slice(Math.min(width, Math.max(0, line.search(/\S/))));
}

function readParagraph(lines, at, depth) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() !== "" && !startsBlock(lines[end], depth)) end++;
  return [{ type: "paragraph", text: lines.slice(at, end).join("\n") }, end];
}

function startsBlock(line, depth) {
  return fenceOf(line) || HEADING.test(line) || RULE.test(line) || (depth < MAX_DEPTH && (QUOTE.test(line) || ITEM.test(line)));
}

/** Cuts a text into strings and { type: "code" | "strong" | "em", parts }. An opening mark without its end stays text. */
export function parseInline(text) {
  const parts = [];
  const missing = new Set(); // marks that have no end further on: looked for once, so that time stays linear
  let plain = 0;
  for (let at = 0; at < text.length; ) {
    MARK.lastIndex = at;
    const found = MARK.exec(text);
    if (!found) break;
    const mark = found[0];
    at = found.index;
    const end = missing.has(mark) ? -1 : findEnd(text, at + mark.length, mark);
    if (end < 0) {
      missing.add(mark);
      at += mark.length;
      continue;
    }
    const inner = text.slice(at + mark.length, end);
    if (inner.trim() === "" || (mark[0] === "*" && inner.trim() !== inner)) {
      at += mark.length; // "2 * 3 * 4" is no emphasis
      continue;
    }
    if (plain < at) parts.push(text.slice(plain, at));
    parts.push(mark[0] === "`" ? { type: "code", parts: [inner] } : { type: mark === "*" ? "em" : "strong", parts: parseInline(inner) });
    at = plain = end + mark.length;
  }
  if (plain < text.length) parts.push(text.slice(plain));
  return parts;
}

function findEnd(text, from, mark) {
  let end = text.indexOf(mark, from);
  if (mark === "**") while (end >= 0 && text[end + 2] === "*") end++; // "***both***": the outer two close
  return end;
}

function inline(text) {
  return parseInline(text).map(partNode);
}

function partNode(part) {
  return typeof part === "string" ? document.createTextNode(part) : element(part.type, {}, ...part.parts.map(partNode));
}

function blockNode(block) {
  switch (block.type) {
    case "code":
      return codeNode(block);
    case "heading":
      return element(`h${Math.min(6, block.level + 2)}`, {}, ...inline(block.text)); // the page's own headings stand above
    case "rule":
      return element("hr");
    case "quote":
      return element("blockquote", {}, ...block.blocks.map(blockNode));
    case "list":
      return listNode(block);
    default:
      return element("p", {}, ...inline(block.text));
  }
}

function listNode({ start, items }) {
  const list = element(start === null ? "ul" : "ol", {}, ...items.map((blocks) => element("li", {}, ...blocks.map(blockNode))));
  if (start !== null) list.start = start;
  return list;
}

function codeNode({ language, text }) {
  const head = element("div", { className: "code-head" }, element("span", {}, language || "text"), copyButton(() => text));
  return element("div", { className: "code" }, head, element("pre", { tabIndex: 0 }, element("code", {}, text)));
}
