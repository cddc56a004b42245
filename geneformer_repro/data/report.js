// What a page of results does by itself: tables that sort, search and download, points that say what they are.
// Text of a table or picture enters by textContent alone, never as HTML. Without this script the first rows, the
// pictures and all words are there.
"use strict";
const PAGE_ROWS = 25, SEARCH_FROM = 9, NEAR = 14;
const made = (tag, of = {}, ...inside) => {
  const element = Object.assign(document.createElement(tag), of);
  element.append(...inside);
  return element;
};

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function shown(value, digits = 3) {
  if (value === null) return "";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e15) return String(value);
  if (size >= 1000 && size < 1e6) return value.toFixed(0);
  const told = Number(value.toPrecision(digits));
  return size < 1e-4 ? told.toExponential() : String(told);
}

// Words that are looked for, apart by commas; a row or point fits if it holds one of them.
const termsOf = (text) => text.toLowerCase().split(",").map((term) => term.trim()).filter(Boolean);
const counted = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;

class Table {
  constructor(box, packed) {
    Object.assign(this, { box, title: box.dataset.title, names: packed.names, columns: packed.columns });
    this.n = packed.columns[0].length;
    this.all = packed.all;
    this.intervals = packed.intervals;
    this.digits = packed.digits;
    const ends = Object.values(packed.intervals).flat();
    this.apart = packed.names.map((_, i) => i).filter((i) => !ends.includes(i)); // columns that have a heading
    this.numeric = this.columns.map((column) => column.every((value) => value === null || typeof value === "number"));
    this.words = Array.from({ length: this.n }, (_, row) =>
      this.columns.filter((_, i) => !this.numeric[i]).map((column) => String(column[row] ?? "").toLowerCase()));
    Object.assign(this, { sorted: -1, falling: false, reversed: false, terms: [], page: 0 });
    this.heads = [...box.querySelectorAll("thead th")];
    this.body = box.querySelector("tbody");
    this.tools(box);
    this.heads.forEach((head, i) =>
      head.append(made("button", { type: "button", onclick: () => this.sortBy(this.apart[i]) }, ...head.childNodes)));
    this.draw();
  }

  tools(box) {
    this.input = made("input", { type: "search", placeholder: "search rows", oninput: () => this.search(this.input.value) });
    this.input.setAttribute("aria-label", `search rows of: ${this.title}`);
    this.count = made("span", { className: "count" });
    this.count.setAttribute("aria-live", "polite");
    const [first, last] = (box.dataset.ends || "").split("|");
    const end = (label, reversed) => made("button", { type: "button", onclick: () => this.from(reversed) }, label);
    this.ends = last ? [end(first, false), end(last, true)] : [];
    const csv = made("button", { type: "button", onclick: () => this.download(), title: "the rows shown, in their order" }, "CSV");
    const turn = (label, by) => made("button", { type: "button", onclick: () => this.turn(by) }, label);
    this.back = turn("‹ back", -1);
    this.next = turn("next ›", 1);
    const search = this.n >= SEARCH_FROM ? [this.input] : [];
    box.prepend(made("div", { className: "tools" }, ...search, ...this.ends, this.count, this.back, this.next, csv));
    box.querySelector(".more")?.remove();
  }

  rows() {
    const fits = (row) => this.terms.some((term) => this.words[row].some((words) => words.includes(term)));
    let rows = [...Array(this.n).keys()];
    if (this.terms.length) rows = rows.filter(fits);
    if (this.reversed) rows.reverse();
    if (this.sorted >= 0) this.sort(rows);
    else if (this.terms.length) {
      const exact = (row) => this.words[row].some((words) => this.terms.includes(words));
      rows = [...rows.filter(exact), ...rows.filter((row) => !exact(row))];
    }
    return rows;
  }

  sort(rows) {
    const column = this.columns[this.sorted], way = this.falling ? -1 : 1, collator = new Intl.Collator("en", { numeric: true });
    const compare = this.numeric[this.sorted] ? (a, b) => a - b : (a, b) => collator.compare(a, b);
    const missing = (value) => value === null || value === "";
    rows.sort((i, j) => {
      const [a, b] = [column[i], column[j]];
      return missing(a) || missing(b) ? missing(a) - missing(b) : way * compare(a, b);
    });
  }

  sortBy(i) {
    const falls = this.numeric[i];
    if (this.sorted !== i) Object.assign(this, { sorted: i, falling: falls });
    else if (this.falling === falls) this.falling = !falls;
    else this.sorted = -1;
    this.page = 0;
    this.draw();
  }

  from(reversed) {
    Object.assign(this, { reversed, sorted: -1, page: 0 });
    this.draw();
  }

  search(text) {
    Object.assign(this, { terms: termsOf(text), page: 0 });
    if (this.input.value !== text) this.input.value = text;
    this.draw();
    return this.found.length;
  }

  turn(by) {
    this.page += by;
    this.draw();
  }

  draw() {
    this.found = this.rows();
    const start = this.page * PAGE_ROWS, rows = this.found.slice(start, start + PAGE_ROWS);
    this.body.replaceChildren(...rows.map((row) => made("tr", {}, ...this.apart.map((column, i) =>
      made("td", { className: this.heads[i].className }, shown(this.columns[column][row], this.digits[column]), ...this.between(column, row))))));
    if (!rows.length) this.body.append(made("tr", {}, made("td", { colSpan: this.heads.length, textContent: "no row has that" })));
    this.heads.forEach((head, i) =>
      head.setAttribute("aria-sort", this.apart[i] !== this.sorted ? "none" : this.falling ? "descending" : "ascending"));
    this.ends.forEach((button, i) => button.setAttribute("aria-pressed", this.sorted < 0 && Number(this.reversed) === i));
    const n = this.found.length, last = start + rows.length;
    const of = n > rows.length ? `${(start + 1).toLocaleString("en")} to ${last.toLocaleString("en")} of ` : "";
    this.count.textContent = of + counted(n, "row") + (this.all > this.n ? ` (of ${this.all.toLocaleString("en")} in the file)` : "");
    this.back.hidden = this.next.hidden = n <= PAGE_ROWS;
    this.back.disabled = this.page === 0;
    this.next.disabled = last >= n;
  }

  // The interval of a value, in grey beside it.
  between(column, row) {
    const ends = (this.intervals[column] || []).map((end) => this.columns[end][row]);
    if (!ends.length || ends.includes(null)) return [];
    return [" ", made("span", { className: "between", textContent: ends.map((end) => shown(end, this.digits[column])).join(" to ") })];
  }

  csv() {
    const cell = (value) => {
      const runs = typeof value === "string" && /^'*[=+\-@\t\r]/.test(value) && !/^[+-]?[\d.]+(e[+-]?\d+)?$/i.test(value);
      const text = (runs ? "'" : "") + (value ?? "");  // as in tables of files: a spreadsheet would run it
      return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    const lines = this.found.map((row) => this.columns.map((column) => cell(column[row])).join(","));
    return [this.names.map(cell).join(","), ...lines].join("\r\n") + "\r\n";
  }

  download() {
    const url = URL.createObjectURL(new Blob([this.csv()], { type: "text/csv" }));
    const name = this.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 80) || "table";
    made("a", { href: url, download: `${name}.csv` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }
}

class Picture {
  constructor(box, points, find) {
    Object.assign(this, { box, title: box.dataset.title, image: box.querySelector("img"), points, rings: [] });
    this.points.lower = points.names.map((name) => name.toLowerCase());
    this.tip = made("div", { className: "tip", hidden: true });
    this.ring = made("div", { className: "ring", hidden: true });
    box.append(this.ring, this.tip);
    box.addEventListener("pointermove", (event) => this.over(event));
    box.addEventListener("pointerleave", () => this.over(null));
    box.addEventListener("click", (event) => {
      const point = this.over(event);
      if (point >= 0) find(this.points.names[point]);
    });
  }

  place(element, point) {
    element.style.left = `${this.points.x[point] / 100}%`;
    element.style.top = `${this.points.y[point] / 100}%`;
  }

  nearest(event) {
    const at = this.image.getBoundingClientRect(), { x, y } = this.points;
    const left = event.clientX - at.left, top = event.clientY - at.top;
    let best = -1, least = NEAR * NEAR;
    for (let i = 0; i < x.length; i++) {
      const across = x[i] * at.width / 1e4 - left, down = y[i] * at.height / 1e4 - top, far = across * across + down * down;
      if (far < least) [best, least] = [i, far];
    }
    return best;
  }

  over(event) {
    const point = event === null ? -1 : this.nearest(event);
    this.tip.hidden = this.ring.hidden = point < 0;
    if (point < 0) return point;
    const said = Object.entries(this.points.said).map(([name, values]) => [name, shown(values[point])]);
    this.tip.replaceChildren(made("b", { textContent: this.points.names[point] }),
      ...said.filter(([, value]) => value).map(([name, value]) => made("span", { textContent: `${name} ${value}` })));
    this.place(this.ring, point);
    this.place(this.tip, point);
    this.tip.classList.toggle("left", this.points.x[point] > 5500);
    return point;
  }

  search(text) {
    const terms = termsOf(text), { names, lower } = this.points;
    const fits = (test) => names.flatMap((_, i) => (terms.some((term) => test(lower[i], term)) ? [i] : []));
    let found = fits((name, term) => name === term);
    if (!found.length) found = fits((name, term) => name.includes(term));
    this.rings.forEach((ring) => ring.remove());
    this.rings = found.slice(0, 200).map((point) => made("div", { className: "ring found" }));
    this.rings.forEach((ring, i) => this.place(ring, found[i]));
    this.box.append(...this.rings);
    return found.length;
  }
}

async function start() {
  const whole = document.querySelector("#find"), tables = [], pictures = [];
  const find = (text) => {
    const told = [];
    for (const [parts, what] of [[pictures, "point"], [tables, "row"]]) {
      for (const part of parts) {
        let n = part.search(text);
        if (what === "row" && (!n || !text.trim())) n = part.search("") && 0;
        if (n && text.trim()) told.push([part, `${part.title}: ${counted(n, what)}`]);
      }
    }
    if (input.value !== text) input.value = text;
    const links = told.map(([part, words]) =>
      made("button", { type: "button", onclick: () => part.box.scrollIntoView({ block: "center" }) }, words));
    where.replaceChildren(...(links.length || !text.trim() ? links : ["nothing on this page has that"]));
  };
  const input = made("input", { type: "search", placeholder: "a gene or name, several apart by commas", oninput: () => find(input.value) });
  const where = made("span", { className: "where" });
  input.setAttribute("aria-label", "find on this page");
  where.setAttribute("aria-live", "polite");
  for (const box of document.querySelectorAll("[data-points]"))
    pictures.push(new Picture(box, await unpacked(box.dataset.points), find));
  for (const box of document.querySelectorAll("[data-rows]")) tables.push(new Table(box, await unpacked(box.dataset.rows)));
  if (pictures.length || tables.some((table) => table.n >= SEARCH_FROM)) whole.append(made("label", {}, "Find ", input), where);
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((folded) => (folded.open = true)));
  document.documentElement.dataset.ready = "yes";
}
start();
