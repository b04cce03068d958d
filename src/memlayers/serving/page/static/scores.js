// What teaching, the last evaluation and the last certificate say of a memory.

import { $, count, getJson, h } from "./api.js";

const SVG = "http://www.w3.org/2000/svg";

export async function showScores(state) {
  const found = await getJson(`${state.at}/scores`);
  const parts = [];
  const curve = found.evaluation?.curve?.length ? found.evaluation.curve : found.teaching?.curve;
  if (found.teaching) {
    parts.push(h("h3", {}, "Teaching"), h("p", {}, `Recall of what was taught ${share(found.teaching.recall)} after ` +
      `${found.teaching.exposures.toFixed(0)} exposures of each fact, ${found.teaching.seconds.toFixed(0)} s.`));
    if (curve?.length && curve.at(-1).recall < found.teaching.recall) {
      parts.push(h("p", { class: "soft" }, "After the end of the curve, what was not held yet was taught further."));
    }
  }
  if (curve?.length) parts.push(chart(curve), curveTable(curve));
  if (found.evaluation) {
    parts.push(h("h3", {}, `Last evaluation (${found.evaluation.file})`), table(["What", "On", "Value", "95 %", "n"],
      found.evaluation.rows.map((row) => [row.metric.replaceAll("_", " "), row.split, figure(row.value),
        row.ci_low === null ? "" : `${figure(row.ci_low)} to ${figure(row.ci_high)}`, String(row.n)]), 2));
  }
  if (found.certificate) {
    parts.push(h("h3", {}, "Certificate"), table(["What", "Value", "95 %", "n"],
      Object.entries(found.certificate).map(([name, row]) => [name.replaceAll("_", " "), figure(row.value),
        `${figure(row.low)} to ${figure(row.high)}`, String(row.n)]), 1));
  }
  if (!parts.length) parts.push(h("p", { class: "soft" }, "Nothing was measured yet."));
  if (!found.evaluation) {
    parts.push(h("p", { class: "soft" }, "An evaluation is shown here where ", h("code", {}, "memlayers eval"),
      " writes it into the memory's folder."));
  }
  $("figures").replaceChildren(...parts);
}

const share = (value) => `${(100 * value).toFixed(1)} %`;
const figure = (value) => Math.abs(value) >= 100 ? value.toFixed(0) : Number(value.toPrecision(3)).toString();

function table(names, rows, numbers) {
  const kind = (place) => place >= numbers ? "number" : null;
  return h("table", { class: "cards" },
    h("thead", {}, h("tr", {}, names.map((name, i) => h("th", { scope: "col", class: kind(i) }, name)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, i) =>
      h("td", { class: kind(i), "data-label": names[i] }, cell))))));
}

function curveTable(curve) {
  return h("details", {}, h("summary", {}, `The curve as a table, ${count(curve.length, "point")}`),
    table(["Exposures", "Recall"], curve.map((point) => [figure(point.exposures), share(point.recall)]), 0));
}

function svg(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Recall over exposures. */
function chart(curve) {
  const [width, height, left, bottom] = [480, 220, 44, 34];
  const most = Math.max(...curve.map((point) => point.exposures), 1);
  const x = (exposures) => left + (width - left - 12) * exposures / most;
  const y = (recall) => 10 + (height - bottom - 10) * (1 - recall);
  const line = curve.map((point) => `${x(point.exposures).toFixed(1)},${y(point.recall).toFixed(1)}`).join(" ");
  const text = (at, down, anchor, words) => svg("text", { x: at, y: down, "text-anchor": anchor }, words);
  const last = curve.at(-1);
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `Recall over exposures per fact: ${share(last.recall)} after ${figure(last.exposures)}` },
  svg("line", { class: "axis", x1: left, y1: y(0), x2: width - 12, y2: y(0) }),
  svg("line", { class: "axis", x1: left, y1: y(0), x2: left, y2: y(1) }),
  ...[0, 0.5, 1].map((each) => text(left - 6, y(each) + 4, "end", `${100 * each} %`)),
  text(left, height - 16, "middle", "0"), text(width - 12, height - 16, "end", figure(most)),
  text((left + width) / 2, height - 2, "middle", "exposures of each fact"),
  svg("polyline", { class: "curve", points: line }),
  ...curve.map((point) => svg("circle", { class: "dot", cx: x(point.exposures), cy: y(point.recall), r: 2.5 })));
}
