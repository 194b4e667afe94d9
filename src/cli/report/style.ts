// How a report looks, light and dark, and what little it does: a search, and curves that come to the front.

export const STYLE = `
:root { color-scheme: light dark; --ink: #1f2328; --faint: #59636e; --line: #d1d9e0; --paper: #ffffff; --soft: #f3f5f7; --mark: #0969da }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --faint: #9198a1; --line: #3d444d; --paper: #0d1117; --soft: #171c23; --mark: #4493f8 }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1360px; padding: 24px; background: var(--paper); color: var(--ink); font: 14px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif }
h1 { font-size: 22px; margin: 0 0 4px } h2 { font-size: 16px; margin: 32px 0 8px }
p { margin: 4px 0 } .faint { color: var(--faint) }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 16px }
figure { margin: 0; padding: 8px 12px; border: 1px solid var(--line); border-radius: 6px }
figcaption { font-weight: 600 }
svg { display: block; width: 100%; height: auto }
svg text { font-size: 11px; fill: var(--faint) } .left { text-anchor: end } .below { text-anchor: middle }
.grid { stroke: var(--line); stroke-width: 0.7; fill: none }
.c { fill: none; stroke-width: 1.4; stroke-linecap: round; stroke-linejoin: round; opacity: 0.8 }
.many .c { stroke-width: 1; opacity: 0.35 }
.some .c { opacity: 0.08 } .c:hover, .some .c.on { stroke-width: 2.4; opacity: 1 }
.wide { overflow-x: auto; max-height: 70vh; border: 1px solid var(--line); border-radius: 6px }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: 4px 10px; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--line) }
th { position: sticky; top: 0; background: var(--soft); cursor: pointer } td.n, th.n { text-align: right }
tr.on { background: var(--soft); outline: 2px solid var(--mark); outline-offset: -2px } tbody tr { cursor: pointer }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 5px; margin-right: 8px }
td.why { white-space: normal; min-width: 240px } .failed, .stopped { color: #cf222e }
input { font: inherit; padding: 4px 8px; margin: 0 0 8px; border: 1px solid var(--line); border-radius: 6px; background: var(--paper); color: inherit; width: min(100%, 320px) }
pre { overflow-x: auto; padding: 12px; background: var(--soft); border-radius: 6px; font-size: 12px }
img { width: 100%; border-radius: 6px; background: #ffffff }
@media print { .wide { max-height: none } input { display: none } }
`;

/** Rows that are chosen bring their curves to the front; a title sorts by its column; the search leaves rows out. */
export const SCRIPT = `
const rows = [...document.querySelectorAll("#adapters tbody tr")];
const show = () => {
  const on = rows.filter((row) => row.classList.contains("on")).map((row) => row.dataset.id);
  document.body.classList.toggle("some", on.length > 0);
  for (const path of document.querySelectorAll(".c.on")) path.classList.remove("on");
  for (const id of on) for (const path of document.querySelectorAll(".a" + id)) { path.classList.add("on"); path.parentNode.append(path); }
};
for (const row of rows) row.onclick = () => { row.classList.toggle("on"); show(); };
document.querySelector("#search").oninput = ({ target }) => {
  for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(target.value.toLowerCase());
};
document.querySelectorAll("#adapters th").forEach((th, i) => {
  th.onclick = () => {
    const way = th.dataset.way === "1" ? -1 : 1;
    th.dataset.way = way;
    const of = (row) => row.cells[i].dataset.v ?? row.cells[i].textContent;
    const before = (a, b) => a === "" ? 1 : b === "" ? -1 : way * (Number.isNaN(+a) || Number.isNaN(+b) ? a.localeCompare(b) : a - b);
    document.querySelector("#adapters tbody").append(...rows.toSorted((a, b) => before(of(a), of(b))));
  };
});
`;
