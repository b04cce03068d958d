"""Tables of databases as rows of text, by SQLAlchemy. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memlayers.sources.table_rows import NumberedCells, Rows, cell_text, choices, package_for, shown
from memlayers.utils.errors import InputError, reason_of


def database_rows(place: str, table: str | None, query: str | None) -> Rows:
    """The rows of a table, or of a query; those of a table of which a file has but one.

    Args:
        place: an SQLite file, or an SQLAlchemy address.
        table: its name, with its schema where it is not in the usual one: "sales.prices".
        query: SQL.

    Raises:
        InputError: the database cannot be reached or read, or has no such table. No message has a password.
    """
    with package_for("sqlalchemy", place):
        import sqlalchemy
    if table is not None and query is not None:
        raise InputError(f"{shown(place)}: both a table and a query; give one of the two")
    engine = _engine(place)
    secret = engine.url.password

    @contextmanager
    def connection() -> Iterator[Any]:
        try:
            with engine.connect() as opened:
                yield opened
        except sqlalchemy.exc.SQLAlchemyError as error:
            reason = reason_of(getattr(error, "orig", None) or error)
            reason = reason.replace(str(secret), "***") if secret else reason
            raise InputError(f"{shown(place)}: the database says: {reason[:200]}; check address and query") from None
        finally:
            engine.dispose()

    with connection() as opened:
        inspector = sqlalchemy.inspect(opened)
        names = sorted([*inspector.get_table_names(), *inspector.get_view_names()])
        if query is None:
            if table is None and len(names) != 1:
                raise InputError(
                    f"{shown(place)}: {len(names)} tables; name one: {', '.join(names) or 'there is none'}"
                )
            table = table or names[0]
            schema, _, bare = table.rpartition(".")
            if table not in names and not (schema and inspector.has_table(bare, schema=schema)):
                raise InputError(f"{shown(place)}: {choices('table', table, names)}")
            parts = [table] if table in names else [schema, bare]
            query = "SELECT * FROM " + ".".join(map(engine.dialect.identifier_preparer.quote_identifier, parts))
        result = opened.execution_options(stream_results=True).exec_driver_sql(query)
        if not result.returns_rows:
            raise InputError(f"{shown(place)}: the query gives no rows; write one that begins with SELECT")
        columns = tuple(map(str, result.keys()))
    for column in columns:
        if columns.count(column) > 1:
            raise InputError(f"{shown(place)}: column {column!r} appears twice; rename one (SELECT ... AS ...)")
    selected = query

    def read() -> NumberedCells:
        with connection() as opened:
            rows = opened.execution_options(stream_results=True, yield_per=1000).exec_driver_sql(selected)
            for number, row in enumerate(rows, start=1):
                yield number, [cell_text(value) for value in row]

    return Rows(f"{shown(place)}, table {table}" if table else shown(place), columns, read)


def _engine(place: str) -> Any:
    import sqlalchemy

    if "://" not in place:  # read only: the file is as it was
        place = f"sqlite:///file:{Path(place).resolve().as_posix()}?mode=ro&uri=true"
    try:
        url = sqlalchemy.make_url(place)
        file = url.database
        if url.get_backend_name() == "sqlite" and "uri" not in url.query and not Path(file or "").is_file():
            raise InputError(f"{shown(place)}: no such file {file!r}; check the address")  # SQLite would make one
        return sqlalchemy.create_engine(url)
    except ModuleNotFoundError as error:
        raise InputError(f"{shown(place)}: this database needs the package {error.name}; pip install it") from None
    except (sqlalchemy.exc.ArgumentError, sqlalchemy.exc.NoSuchModuleError) as error:
        if isinstance(error, sqlalchemy.exc.NoSuchModuleError):
            raise InputError(f"{shown(place)}: no such kind of database is known; check the address") from None
        raise InputError(f"{shown(place)}: not an address; write one such as sqlite:///shop.db") from None
