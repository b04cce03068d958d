// The dialog of one fact: what it says, where it was found, its edits; and its correction.

import { $, count, encoded, getJson, h, say, tried, when } from "./api.js";

/** Shows the facts behind an answer; where none says it word for word, what the gate decided. */
export async function showFact(state, memlayers, words) {
  const facts = await Promise.all(memlayers.facts.map((fact) => factNow(state, fact)));
  const rest = [];
  if (!facts.length) {
    rest.push(h("p", {}, `The memory spoke “${words.trim()}”, and no stored fact has this answer word for word.`));
  }
  const score = memlayers.score === null ? null : h("p", { class: "soft" },
    `Score ${memlayers.score.toFixed(3)}; the memory's answer is given from ${memlayers.threshold.toFixed(3)} on. ` +
    `Answered by version ${memlayers.version}.`);
  openDialog("What the memory spoke", ...facts.map((fact) => factParts(state, fact)), ...rest, score);
}

/** Shows one stored fact. */
export async function showStored(state, id) {
  openDialog("Fact", factParts(state, await getJson(`${state.at}/facts/${encoded(id)}`)));
}

async function factNow(state, fact) {
  try {
    return await getJson(`${state.at}/facts/${encoded(fact.id)}`);
  } catch (error) {
    if (error.status !== 404) throw error;
    const journal = await getJson(`${state.at}/journal?fact=${encoded(fact.id)}`);
    return { ...fact, gone: true, edits: journal.data };
  }
}

function factParts(state, fact) {
  const row = (name, ...values) => values.flat().length ? [h("dt", {}, name), h("dd", {}, ...values)] : [];
  const list = (texts) => h("ul", {}, texts.map((text) => h("li", {}, text)));
  const sources = fact.sources.map((source) => h("li", {}, source.place || "not noted",
    source.evidence ? h("blockquote", {}, source.evidence) : null));
  const edits = fact.edits.map((edit) => h("li", {},
    `${edit.number}: ${edit.kind}${edit.undone ? ", taken back" : ""}, ${when(edit.time)}`));
  return h("section", { class: "fact" },
    h("h3", {}, [fact.subject, fact.relation].filter(Boolean).join(", ") || fact.id),
    fact.gone ? h("p", { class: "bad" }, "Forgotten since.") : null,
    h("dl", {},
      row("Answer", h("strong", {}, fact.answer)),
      row("Also right", fact.aliases?.length ? [fact.aliases.join(", ")] : []),
      row("Other names", fact.subject_aliases?.length ? [fact.subject_aliases.join(", ")] : []),
      row("Source", sources.length ? [h("ul", {}, sources)] : ["none noted: it was told by hand, or taught without"]),
      row("Edits", edits.length ? [h("ul", {}, edits)] : ["none since it was taught"])),
    fact.questions?.length ? h("details", {}, h("summary", {}, count(fact.questions.length, "question")),
      list(fact.questions)) : null,
    fact.gone || !state.memory.editable ? null : h("div", { class: "line" },
      h("button", { type: "button", onclick: () => correct(state, fact) }, "Correct"),
      h("button", { type: "button", onclick: (event) => forget(state, fact, event.target) }, "Forget")));
}

/** Asks for the new answer of a fact, and writes it. */
export function correct(state, fact) {
  const input = h("input", { id: "new-answer", value: fact.answer, required: true, autocomplete: "off" });
  const form = h("form", {
    onsubmit: (event) => {
      event.preventDefault();
      const answer = input.value.trim();
      if (!answer) return;
      tried(async () => {
        say(`Correcting ${fact.subject || fact.id} …`);
        await getJson(`${state.at}/facts/${encoded(fact.id)}`, { method: "PATCH", json: { answer } });
        $("detail").close();
        say(`${fact.subject || fact.id}: the answer is “${answer}” now.`);
        await state.refresh();
      }, event.submitter).then(() => undefined);
    },
  },
  h("p", {}, fact.questions?.[0] ?? ""), h("label", { htmlFor: "new-answer" }, "The right answer"), input,
  h("div", { class: "line" }, h("button", { class: "main", type: "submit" }, "Save")));
  openDialog(`Correct ${fact.subject || fact.id}`, form);
  input.focus();
  input.select();
}

/** Forgets a fact; undo brings it back. */
export function forget(state, fact, button) {
  return tried(async () => {
    say(`Forgetting ${fact.subject || fact.id} …`);
    await getJson(`${state.at}/facts/${encoded(fact.id)}`, { method: "DELETE" });
    $("detail").close();
    say(`${[fact.subject || fact.id, fact.relation].filter(Boolean).join(", ")} is forgotten; undo brings it back.`);
    await state.refresh();
  }, button);
}

function openDialog(title, ...parts) {
  const dialog = $("detail");
  dialog.replaceChildren(h("h2", { id: "detail-title", tabIndex: -1, autofocus: true }, title), ...parts.filter(Boolean),
    h("div", { class: "line" }, h("button", { type: "button", onclick: () => dialog.close() }, "Close")));
  if (!dialog.open) dialog.showModal();
}
