"""The SQLite file of the service: whole and up to date or refused; one connection that writes, others that read.

A change that returns is on the disk, one that raises was not made: the journal is a write-ahead log with a sync at each
commit, so neither a kill nor a power cut leaves half of one.
"""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from videoanomaly.runtime.console import InputError

APPLICATION = 0x56414E57  # tells our files from those of other programs
PATIENCE = 10.0  # seconds to wait for another process that writes
LONGEST_LOG = 16 * 2**20  # bytes of the write-ahead log that stay after a burst


class StoreError(OSError):
    """The database cannot be read or written now; what was stored is still there, the change was not made."""


class Database:
    """A file and its connections, for any thread.

    Args:
        path: The file, made if it is not there; its folder is.
        migrations: Statements that lead from version n (PRAGMA user_version) to n + 1, for n from 0 on.
    Raises:
        InputError: If it is damaged, of a newer version, of another program, or cannot be written. Nothing is changed.
    """

    def __init__(self, path: Path, migrations: Sequence[Sequence[str]]):
        self.path, self.lock = path, threading.Lock()
        self.idle: list[sqlite3.Connection] = []  # that read
        try:
            self.writer = self.connect()
            try:
                self.prepare(migrations)
            except BaseException:
                self.writer.close()
                raise
        except sqlite3.Error as error:
            raise InputError(f"{path}: {self.what_is_wrong(error)}") from error

    def connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, PATIENCE, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    def prepare(self, migrations: Sequence[Sequence[str]]) -> None:
        """Looks at the whole file, and brings it up to date."""
        self.check(len(migrations))
        for pragma in ("synchronous = FULL", "journal_mode = WAL", f"journal_size_limit = {LONGEST_LOG}"):
            self.writer.execute(f"PRAGMA {pragma}").fetchall()
        while self.migrate(migrations):
            pass

    def check(self, newest: int) -> None:
        """Refuses, by an InputError, what cannot be ours, and raises what SQLite would of a damaged file."""
        version, owner = self.version(), self.writer.execute("PRAGMA application_id").fetchone()[0]
        (tables,) = self.writer.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if (version or tables) and owner != APPLICATION:
            raise InputError(f"{self.path}: is a database of another program, expected one of watch.py")
        if version > newest:
            raise InputError(
                f"{self.path}: found version {version}, expected at most {newest}: a newer watch.py wrote it; use that "
                "one, or another folder"
            )
        found = self.writer.execute("PRAGMA integrity_check(1)").fetchone()[0].splitlines()
        if found != ["ok"]:
            raise sqlite3.DatabaseError(found[-1])

    def version(self) -> int:
        return self.writer.execute("PRAGMA user_version").fetchone()[0]

    def migrate(self, migrations: Sequence[Sequence[str]]) -> bool:
        """Makes the next step, whole or not at all; False: there was none."""
        with self.transaction() as connection:
            if (version := self.version()) == len(migrations):
                return False
            for statement in migrations[version]:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {version + 1}")
        return True

    def what_is_wrong(self, error: sqlite3.Error) -> str:
        """Of a file that cannot be opened."""
        if isinstance(error, sqlite3.OperationalError):
            return f"cannot be used ({error}), expected a database that can be read and written"
        return (
            f"is damaged ({error}), expected a whole database; nothing was deleted. Move it away to begin anew; what "
            f"can be read of it: sqlite3 {self.path.name} .recover | sqlite3 recovered.db"
        )

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """It is committed when the block ends, and undone if that raises."""
        self.writer.execute("BEGIN IMMEDIATE")
        try:
            yield self.writer
            self.writer.execute("COMMIT")
        except BaseException:
            if self.writer.in_transaction:  # a full disk may have undone it already
                with suppress(sqlite3.Error):
                    self.writer.execute("ROLLBACK")
            raise

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """The transaction of one thread at a time.

        Raises:
            StoreError: If the disk is full, or the like.
        """
        with self.lock:
            try:
                with self.transaction() as connection:
                    yield connection
            except sqlite3.Error as error:
                raise StoreError(f"{self.path}: cannot be written ({error})") from error

    def read(self, sql: str, values: Sequence[object] = ()) -> list[sqlite3.Row]:
        """The rows of a query, as they were last committed; nobody who writes is waited for.

        Raises:
            StoreError: If the file cannot be read.
        """
        try:
            connection = self.borrow()
            rows = connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: cannot be read ({error})") from error
        self.idle.append(connection)
        return rows

    def borrow(self) -> sqlite3.Connection:
        """A connection that nobody reads with now; a list is safe between threads."""
        try:
            return self.idle.pop()
        except IndexError:
            return self.connect()

    def close(self) -> None:
        """Waits for the change in progress; later ones raise a StoreError."""
        with self.lock:
            self.writer.close()
        while self.idle:
            self.idle.pop().close()
