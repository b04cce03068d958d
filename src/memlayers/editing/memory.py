"""A memory: asked, and edited. `load_memory` opens one; everything heavy is imported and done when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from memlayers.data.conversations import is_conversation
from memlayers.data.facts import Fact, aliases_by_subject
from memlayers.editing.config import EditConfig
from memlayers.editing.fact_book import FactBook
from memlayers.editing.report import EditReport
from memlayers.inference.folder import check_pool_place, folder_version, read_adapter_config
from memlayers.linking.config import LinkConfig
from memlayers.utils.errors import InputError
from memlayers.utils.folder_change import check_changeable, recover_folder, settle_folder
from memlayers.utils.locks import writing_alone

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from memlayers.data.conversations import Asked
    from memlayers.editing.editor import Editor
    from memlayers.editing.journal import Record
    from memlayers.inference.answering import Answer
    from memlayers.inference.record import Teaching, TeachReport
    from memlayers.linking.linker import Linker, NameLinker

_Loader: TypeAlias = "Callable[[], tuple[Any, PreTrainedTokenizerBase]]"


class Memory:
    """A backbone with a memory: `ask` it, and edit what it holds.

    Any number of processes may read one folder. The first edit takes a lock on it, which `close` or the end of a
    ``with`` block gives back; the folder must then still be the one that was opened. A ``with`` block that ends well
    saves.

    Args:
        model: the PEFT model, its memory named "default".
        tokenizer: the backbone's.
        folder: where the memory was saved, as it is in the model; None if it was not: then it is not edited.
        edits: how edits write; None for the defaults.
        autosave: save each edit as it is made. Otherwise `save`, or the end of the ``with`` block, saves all at once.
        quiet: no progress bars.
        links: how names in questions are linked to the stored subjects; None for the defaults.
        linker: finds the stored subjects in a question, in place of the built-in one.

    Attributes:
        folder: where it is saved, or None.
        links: how names in questions are linked.
        linker: that was given, or None.
        edits: how edits write, from the next one on.
        autosave: whether each edit is saved as it is made.
        quiet: whether edits show no progress bars, from the first one on.
        written: called with the slots that an edit or an undo has changed, int64 [n], in the thread that edits, as soon
            as it is made (with autosave: and saved); None for nobody.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        folder: str | Path | None = None,
        *,
        edits: EditConfig | None = None,
        autosave: bool = True,
        quiet: bool = True,
        links: LinkConfig | None = None,
        linker: Linker | None = None,
    ) -> None:
        self.folder = None if folder is None else Path(folder)
        self.edits, self.autosave, self.quiet = edits or EditConfig(), autosave, quiet
        self.links, self.linker = links or LinkConfig(), linker
        self._model, self._tokenizer = model, tokenizer
        self._loader: _Loader | None = None
        self._version = None if self.folder is None else folder_version(self.folder)
        self._book: FactBook | None = None
        self._editor: Editor | None = None
        self._lock: ExitStack | None = None
        self._closed = False
        self.written: Callable[[Tensor], object] | None = None
        self._made_linker: tuple[list[Fact], NameLinker] | None = None  # of these facts
        self._no_facts: list[Fact] = []

    @property
    def model(self) -> Any:
        """The PEFT model; it answers with the edits as soon as they are made."""
        self._load()
        return self._model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's."""
        self._load()
        return self._tokenizer

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The stored facts, in order, with the edits that are not saved yet.

        Raises:
            InputError: the memory has no folder, or one that does not remember its facts or has changed since.
        """
        return tuple(self._read_book().facts)

    @property
    def aliases(self) -> dict[str, tuple[str, ...]]:
        """The aliases of each stored subject that has some, with the edits that are not saved. Raises as `facts`."""
        return aliases_by_subject(self.facts)

    @property
    def teaching(self) -> Teaching | None:
        """The record of how it was taught, and of what came of it; None for a memory that has none (Trainer's, say).

        Raises:
            InputError: the record is damaged.
        """
        from memlayers.inference.record import read_teaching

        return None if self.folder is None else read_teaching(self.folder)

    @property
    def report(self) -> TeachReport:
        """What teaching did: that of `teaching`, or an empty one where there is no record."""
        from memlayers.inference.record import TeachReport

        return TeachReport() if (taught := self.teaching) is None else taught.report

    @property
    def journal(self) -> tuple[Record, ...]:
        """The edits that were saved, oldest first. Raises as `facts`, and for a damaged journal."""
        return tuple(self._read_book().records)

    @property
    def notice(self) -> str | None:
        """One line about a journal that was cut off, if it was. Raises as `facts`, and for a damaged journal."""
        return self._read_book().notice

    # -- asking -------------------------------------------------------------------------------------------------------

    @overload
    def ask(self, questions: Asked, *, batch_size: int = ..., progress: Any = ...) -> Answer: ...  # type: ignore[overload-overlap]  # a text is a sequence of texts too

    @overload
    def ask(self, questions: Sequence[Asked], *, batch_size: int = ..., progress: Any = ...) -> list[Answer]: ...

    def ask(
        self, questions: Asked | Sequence[Asked], *, batch_size: int = 128, progress: Any = None
    ) -> Answer | list[Answer]:
        """Answers each question by greedy generation, with the memory and by the bare backbone.

        Names of stored subjects are found in any spelling, and a pronoun in a conversation stands for the subject that
        was named last (docs/asked.md): `Answer.asked` says what the memory was asked.

        Args:
            questions: one, or any number; each a text, or the messages of a conversation, whose last one asks:
                ``[{"role": "user", "content": "Tell me about Kylotonn."}, ...]``.
            batch_size: questions per batch.
            progress: called with the number of questions answered after each batch, with the memory and without.

        Returns:
            One answer for a text or a conversation, otherwise a list of one per question.

        Raises:
            InputError: a question is empty, or fills the backbone's context; a message is none.
        """
        from memlayers.inference.answering import ask_model

        one = isinstance(questions, str) or is_conversation(questions)
        asked: Any = [questions] if one else questions
        answers = ask_model(
            self.model, self.tokenizer, asked, linker=self.name_linker(), links=self.links,
            batch_size=batch_size, progress=progress,
        )  # fmt: skip
        return answers[0] if one else answers

    # -- editing ------------------------------------------------------------------------------------------------------

    def add(self, facts: Sequence[Fact]) -> EditReport:
        """Adds facts, any number of them in one edit.

        Args:
            facts: at least one; their ids are new, and so are their questions.

        Raises:
            InputError: an id or a question is stored already, or a fact contradicts another one; or the memory cannot
                be edited (see `prepare`).
            EditRefused: it would change a stored fact's answer, or does not take.
        """
        changes = self._book_to_edit().plan_add(facts)
        return self._editing().write("add", changes, autosave=self.autosave)

    def update(self, facts: Sequence[Fact]) -> EditReport:
        """Gives stored facts new answers. Their phrasings stay, and those of `facts` that are new are added.

        A fact is found by its id, or else by subject and relation, or else by one of its questions.

        Args:
            facts: at least one.

        Raises:
            InputError: a fact is not stored, or several could be meant; or the update contradicts a stored fact; or the
                memory cannot be edited (see `prepare`).
            EditRefused: it would change another fact's answer, or does not take.
        """
        changes = self._book_to_edit().plan_update(facts)
        return self._editing().write("update", changes, autosave=self.autosave)

    def forget(
        self,
        *,
        ids: Sequence[str] = (),
        subject: str | None = None,
        facts: Sequence[Fact] = (),
        purge: bool = False,
    ) -> EditReport:
        """Forgets facts: closes the gate for their subjects, clears their slots, unlearns what shared slots hold.

        The report's evidence has, for "taught" and "unseen" phrasings, for the memory "before" and "after", the bare
        "backbone", and the memory read for every token, "always_on_before" and "always_on": the share that is given
        the old answer ("given"), the median rank and mean probability of its first token, and its mean log-probability.

        Args:
            ids: of the facts.
            subject: all facts about it.
            facts: found as `update` does.
            purge: drop all undo data, which would hold the forgotten answers; then nothing can be undone.

        Raises:
            InputError: nothing is named, or something that is not stored; or the memory cannot be edited (see
                `prepare`).
            EditRefused: it would change another fact's answer.
        """
        changes = self._book_to_edit().plan_forget(ids, subject, facts)
        return self._editing().write("forget", changes, autosave=self.autosave, purge=purge)

    def add_aliases(self, subject: str, aliases: Sequence[str]) -> EditReport:
        """Has a stored subject be known by other names too; no slot changes. All facts about it get the aliases.

        The report's evidence has the "subject" and what was "added" and "removed".

        Args:
            subject: as the stored facts have it.
            aliases: at least one.

        Raises:
            InputError: no stored fact is about it, or an alias is empty or too long (`facts.alias_fault`), held
                already, or a name of another subject; or the gate knows no subjects, or the memory cannot be edited
                (see `prepare`).
            EditRefused: an alias is how another stored fact is mentioned, or a stored fact's answer would change.
        """
        changes = self._book_to_edit().plan_add_aliases(subject, aliases)
        return self._editing().write("alias", changes, autosave=self.autosave)

    def remove_aliases(self, subject: str, aliases: Sequence[str]) -> EditReport:
        """Has a stored subject be known by some aliases no more; see `add_aliases`.

        Raises:
            InputError: no stored fact is about it, or one is no alias of it; or the gate knows no subjects, or the
                memory cannot be edited (see `prepare`).
            EditRefused: a stored fact's answer would change: one that only its alias mentions.
        """
        changes = self._book_to_edit().plan_remove_aliases(subject, aliases)
        return self._editing().write("alias", changes, autosave=self.autosave)

    def set_sources(self, facts: Sequence[Fact]) -> EditReport:
        """Notes where stored facts were found, in place of what was noted; no slot and no answer changes.

        Args:
            facts: found by their ids; of each only its sources are taken.

        Returns:
            The edit's report; where nothing differs there is no edit, and the report's number is 0.

        Raises:
            InputError: an id is not stored; or the memory cannot be edited (see `prepare`).
        """
        changes = self._book_to_edit().plan_sources(facts)
        if not changes:
            return EditReport(0, "sources", ())
        return self._editing().write("sources", changes, autosave=self.autosave)

    def repair(self) -> EditReport:
        """Asks every stored fact in all its taught phrasings, and teaches those again that are not answered any more.

        After many edits a fact may have lost what later ones overwrote. One edit, as an update to the same answers.

        Returns:
            The edit's report; where nothing was wrong there is no edit, and the report's number is 0.

        Raises:
            InputError: the memory cannot be edited (see `prepare`).
            EditRefused: it would change another fact's answer, or does not take.
        """
        self._book_to_edit()
        return self._editing().repair(autosave=self.autosave)

    def undo(self) -> EditReport:
        """Takes the last edit back, bit for bit. The report says which facts that concerned, and how.

        Raises:
            InputError: there is none, its undo data is gone, or something else changed the memory since; or the memory
                cannot be edited (see `prepare`).
        """
        self.save()
        plan = self._book_to_edit().plan_undo()
        return self._editing().undo(*plan)

    def save(self) -> None:
        """Writes the edits made since the last saving into the folder, in one step; nothing where there are none."""
        if self._editor is not None:
            self._editor.save()

    def hold(self) -> None:
        """Takes the lock on the folder now, so that nobody else edits it; loads no model.

        Raises:
            InputError: the memory cannot be edited (see `prepare`).
        """
        self._book_to_edit()

    def prepare(self) -> None:
        """Does now what the first edit would otherwise wait for: the lock, and what every stored fact reads.

        Raises:
            InputError: the memory cannot be edited: it has no folder, or one that cannot be written, that has changed
                since it was opened, or that another process is editing; it does not remember its facts; it was opened
                with its gate off; it is of the dense recipe; or it was closed.
        """
        book = self._book_to_edit()
        self._editing().session.prepare()
        book.facts_text(book.facts)

    def close(self) -> None:
        """Lets others edit the folder. What was not saved is not saved any more; the memory can still be asked."""
        self._closed, self._editor = True, None
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.save()
        finally:
            self.close()

    # -- what is opened when ------------------------------------------------------------------------------------------

    def name_linker(self) -> Linker | None:
        """What finds the stored subjects in a question: of the facts as they are; None where none does."""
        if self.linker is not None or not self.links.enabled:
            return self.linker
        from memlayers.linking.linker import NameLinker, ordinary_words

        facts = self._named_facts()
        if self._made_linker is None:
            self._made_linker = facts, NameLinker(facts, self.links, ordinary_words(self.tokenizer))
        elif self._made_linker[0] is not facts:
            self._made_linker = facts, self._made_linker[1].updated(facts)
        return self._made_linker[1]

    def _named_facts(self) -> list[Fact]:
        """The stored facts as far as they are known; another process may have edited them since."""
        try:
            return self._read_book().facts
        except InputError:
            return self._no_facts

    def _load(self) -> None:
        """Loads the model where it is not there yet."""
        if self._loader is not None:
            self._model, self._tokenizer = self._loader()
            self._loader = None

    def _read_book(self) -> FactBook:
        """The stored facts and the journal."""
        if self._book is None:
            self._require_unchanged()
            self._book = FactBook(self._folder())
        return self._book

    def _book_to_edit(self) -> FactBook:
        """The stored facts and the journal of a folder that only this memory may write now; loads no model."""
        folder = self._folder()
        if self._closed:
            raise InputError(f"{folder}: closed; load it again to edit it")
        if self._lock is None:
            with ExitStack() as stack:
                stack.enter_context(writing_alone(folder))
                recover_folder(folder)
                check_changeable(folder)
                self._require_unchanged()
                if read_adapter_config(folder).get("trainable_addressing"):
                    raise InputError(
                        f"{folder}: a memory of the dense recipe cannot be edited: its addressing was learned; teach "
                        "one of the addressed recipe"
                    )
                self._read_book()
                self._lock = stack.pop_all()
        return self._read_book()

    def _editing(self) -> Editor:
        """The edits under way; loads the model."""
        if self._editor is None:
            from memlayers.editing.editor import Editor
            from memlayers.editing.session import EditSession

            book = self._read_book()
            self._editor = Editor(EditSession(self.model, self.tokenizer, book, self.edits, quiet=self.quiet))
        self._editor.session.config, self._editor.written = self.edits, self.written
        return self._editor

    def _folder(self) -> Path:
        if self.folder is None:
            raise InputError("this memory has no folder to edit: save it, then open it with load_memory")
        return self.folder

    def _require_unchanged(self) -> None:
        if self._version != folder_version(self._folder()):
            raise InputError(f"{self.folder}: changed since it was opened; load it again")


def load_memory(
    folder: str | Path,
    *,
    backbone: str | Path | None = None,
    dtype: str = "auto",
    device: str | None = None,
    gate: bool = True,
    pool: str = "device",
    edits: EditConfig | None = None,
    autosave: bool = True,
    quiet: bool = True,
    lazy: bool = False,
    links: LinkConfig | None = None,
    linker: Linker | None = None,
    loaded: tuple[Any, PreTrainedTokenizerBase] | None = None,
) -> Memory:
    """Opens a memory. Any number of processes may; it is locked from its first edit on.

    Args:
        folder: an adapter folder, as ``memlayers teach`` or ``save_pretrained`` wrote it.
        backbone: "pocket", a folder or a hub name; None for the one the memory was taught on.
        dtype: of the backbone; as in `load_backbone`.
        device: None chooses.
        gate: False reads the memory for every token; such a memory is not edited.
        pool: where the value pool is: "device", "host" or "disk"; as in `load_adapter`.
        edits: how edits write; None for the defaults.
        autosave: save each edit as it is made. Otherwise `Memory.save`, or the end of a ``with`` block, saves all at
            once.
        quiet: no progress bars while it is edited.
        lazy: load the backbone and the weights when they are first needed: what can be refused without them is then
            refused at once, and errors in them are raised later.
        links: how names in questions are linked to the stored subjects; None for the defaults.
        linker: finds the stored subjects in a question, in place of the built-in one (`memlayers.linking.linker`).
        loaded: the backbone and its tokenizer, where they are loaded already; the memory is put on this very model.

    Raises:
        InputError: not a memory folder, a damaged one, or one made for another backbone.
    """
    folder = Path(folder)
    check_pool_place(pool)
    settle_folder(folder)
    read_adapter_config(folder)
    memory = Memory(None, None, folder, edits=edits, autosave=autosave, quiet=quiet, links=links, linker=linker)  # type: ignore[arg-type]  # loaded below

    def load() -> tuple[Any, PreTrainedTokenizerBase]:
        from memlayers.inference.loading import load_adapter

        return load_adapter(folder, backbone=backbone, dtype=dtype, device=device, gate=gate, pool=pool, loaded=loaded)

    memory._loader = load
    if not lazy:
        memory._load()
    return memory
