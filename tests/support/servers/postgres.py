"""A real PostgreSQL of Debian's package, on a port of its own."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.servers.data_servers import free_port

PASSWORD = "hunter2-of-postgres"


class Postgres:
    """One that listens on loopback and asks for a password. It refuses to run as root: then it is `postgres`."""

    def __init__(self, folder: Path):
        self._bin = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        self._folder, self._port = folder / "cluster", free_port()
        self._user = "postgres" if os.getuid() == 0 else None
        if self._user:
            shutil.chown(folder, self._user, self._user)
        (folder / "password").write_text(PASSWORD)
        (folder / "password").chmod(0o644)
        options = ("--auth=scram-sha-256", "--no-sync", "--username=mlflow", f"--pwfile={folder}/password")
        self._run("initdb", *options, f"--pgdata={self._folder}")

    def start(self) -> None:
        options = f"-c listen_addresses=127.0.0.1 -c port={self._port} -c unix_socket_directories='' -c fsync=off"
        self._control("start", "-o", options, f"--log={self._folder}/log")

    def stop(self) -> None:
        """As when its machine dies: without telling its clients."""
        self._control("stop", "--mode=immediate")

    def uri(self, database: str) -> str:
        """For SQLAlchemy, which without the driver's name would look for psycopg 3."""
        return f"postgresql+psycopg2://mlflow:{PASSWORD}@127.0.0.1:{self._port}/{database}"

    def run(self, program: str, *arguments: str, given: str | None = None) -> str:
        """A client program of PostgreSQL, as its user and with its password; what it prints."""
        where = {"PGHOST": "127.0.0.1", "PGPORT": str(self._port), "PGUSER": "mlflow", "PGPASSWORD": PASSWORD}
        return self._run(program, *arguments, given=given, **where)

    def _control(self, action: str, *options: str) -> None:
        self._run("pg_ctl", action, "--wait", f"--pgdata={self._folder}", *options)

    def _run(self, program: str, *arguments: str, given: str | None = None, **environment: str) -> str:
        with tempfile.TemporaryFile("w+") as output:  # a server keeps a pipe open
            subprocess.run(
                [self._bin / program, *arguments],
                cwd="/",
                env={**os.environ, **environment},
                input=given,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                check=True,
                user=self._user,
                group=self._user,
            )
            output.seek(0)
            return output.read()


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Running, with an empty database `mlflow`."""
    with tempfile.TemporaryDirectory() as folder:  # its user may not look into pytest's
        server = Postgres(Path(folder))
        server.start()
        try:
            server.run("createdb", "mlflow")
            yield server
        finally:
            server.stop()
