// A file that is dropped: what it would teach, then the learning of it, edit by edit.

import { $, count, events, getJson, h, request, say, tried } from "./api.js";

let state = null;
let file = null;
let stopping = null;

export function startImport(given) {
  state = given;
  const drop = $("drop");
  $("file").addEventListener("change", () => { if ($("file").files[0]) take($("file").files[0]); });
  for (const name of ["dragenter", "dragover"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
  $("stop").addEventListener("click", () => stopping?.abort());
  $("plan").addEventListener("submit", (event) => {
    event.preventDefault();
    tried(learn, event.submitter);
  });
}

function form(extra) {
  const made = new FormData();
  made.append("file", file, file.name);
  for (const [name, value] of Object.entries(extra)) if (value) made.append(name, value);
  return made;
}

function chosen() {
  const plan = $("plan");
  const boxes = [...plan.querySelectorAll("[name=column]")];
  return {
    subject: plan.querySelector("[name=subject]")?.value ?? "",
    columns: boxes.filter((box) => box.checked && !box.disabled).map((box) => box.value).join(","),
  };
}

async function take(given) {
  file = given;
  $("learning").hidden = true;
  await tried(() => plan({}));
}

/** Asks what the file would teach, and shows it. */
async function plan(options) {
  say(`Reading ${file.name} …`);
  const read = await getJson(`${state.at}/import`, { method: "POST", form: form({ ...options, dry_run: "true" }) });
  const told = read.added + read.updated + read.forgotten + read.moved;
  const what = [[read.added, "new"], [read.updated, "with another answer"], [read.forgotten, "to be forgotten"],
    [read.moved, "found elsewhere now"], [read.unchanged, "known already"]].filter(([number]) => number);
  const left = Object.entries(read.left_out).map(([why, number]) => `${number} left out: ${why}`);
  const columns = options.columns?.split(",") ?? null;
  $("plan").replaceChildren(
    h("h3", {}, `${read.file}: ${count(read.facts, "fact")}`),
    h("p", {}, [...what.map(([number, how]) => `${number} ${how}`), ...left].join(" · ")),
    read.columns.length ? h("div", { class: "fields" },
      h("div", {}, h("label", { htmlFor: "subject-column" }, "Column that says what a row is about"),
        h("select", { id: "subject-column", name: "subject",
          onchange: () => tried(() => plan({ subject: $("subject-column").value })) },
        read.columns.map((each) => h("option", { value: each, selected: each === read.subject }, each))))) : null,
    read.columns.length ? h("fieldset", {}, h("legend", {}, "Columns to learn"),
      read.columns.filter((each) => each !== read.subject).map((each) => h("label", { class: "check" },
        h("input", { type: "checkbox", name: "column", value: each, checked: !columns || columns.includes(each),
          onchange: () => tried(() => plan(chosen())) }), each))) : null,
    h("ul", {}, read.examples.map((fact) => h("li", {}, `${fact.questions[0]} `, h("strong", {}, fact.answer)))),
    h("button", { class: "main", type: "submit", disabled: !told || !state.memory.editable },
      told ? `Learn ${count(told, "fact")}` : "Nothing to learn: all of it is known"));
  $("plan").hidden = false;
  say(`${read.file} was read.`);
}

/** Learns it, and shows each edit as it is made. */
async function learn() {
  const options = chosen();
  stopping = new AbortController();
  $("plan").hidden = true;
  $("learning").hidden = false;
  $("steps").replaceChildren();
  $("bar").value = 0;
  $("stop").hidden = false;
  try {
    const response = await request(`${state.at}/import`,
      { method: "POST", form: form(options), signal: stopping.signal });
    for await (const event of events(response)) shown(event);
  } catch (error) {
    if (error.name !== "AbortError") throw error;
    say("Stopped. What was learned so far is kept; drop the file again to go on.");
  } finally {
    $("stop").hidden = true;
    $("file").value = "";
    await state.refresh();
  }
}

function shown(event) {
  if (event.total !== undefined) $("bar").max = Math.max(event.total, 1);
  $("bar").value = event.done ?? 0;
  $("bar-label").textContent = `Learning ${file.name}: ${event.done ?? 0} of ${event.total}`;
  if (event.type === "progress") {
    const doing = { add: "Added", update: "Corrected", forget: "Forgot", sources: "Noted the sources of" };
    const refused = event.refused.at(-1);
    $("steps").append(h("li", { class: event.taken ? null : "bad" }, event.taken ?
      `${doing[event.kind] ?? event.kind} ${event.subjects.join(", ")} (version ${event.version}, ` +
      `${event.seconds.toFixed(1)} s)` : `${refused.subject}: ${refused.message}`));
  } else if (event.type === "done") {
    const taken = event.total - event.refused.length;
    $("bar-label").textContent = `${file.name}: ${taken} of ${event.total} learned, version ${event.version}`;
    if (!event.total) $("bar").value = 1;
    say(`${file.name} is learned: ${count(taken, "fact")}` +
      (event.refused.length ? `, ${event.refused.length} refused.` : "."), event.refused.length > 0);
  } else if (event.type === "error") {
    say(event.error.message, true);
  }
}
