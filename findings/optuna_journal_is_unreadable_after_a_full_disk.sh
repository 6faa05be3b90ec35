#!/bin/sh
# optuna 5.0.0: a study in a journal file, and a disk that is full for a moment.
#
# Expected: the write that does not fit fails, and once there is room again the study goes on, as with SQLite.
# Seen:     the failed write leaves the beginning of a line, and the next write ends it. The process that writes it fails
#           with an AttributeError, and every later one with a JSONDecodeError: all earlier trials are in the file, and
#           none can be read.
# So:       the study of `megacov sweep` is a SQLite file.
#
# Run with: sh findings/optuna_journal_is_unreadable_after_a_full_disk.sh [python3.11]. Needs a network or a package mirror.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${1:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet install optuna==5.0.0
cat >"$folder/study.py" <<'PYTHON'
import resource
import signal
import sys
from pathlib import Path

import optuna
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

optuna.logging.set_verbosity(optuna.logging.ERROR)
folder = Path(sys.argv[1])


def storage(kind):
    if kind == "journal":
        return JournalStorage(JournalFileBackend(str(folder / "journal")))
    return RDBStorage(f"sqlite:///{folder / 'sqlite'}")


def one_trial(study):
    trial = study.ask()
    study.tell(trial, trial.suggest_float("x", 0, 1))


for kind in ("journal", "sqlite"):
    study = optuna.create_study(study_name="study", storage=storage(kind))
    one_trial(study)
    # A limit on the size of files cuts a write as a full disk does.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = (folder / kind).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, resource.RLIM_INFINITY))
    try:
        for _ in range(200):
            one_trial(study)
        raise SystemExit("the limit did not cut a write")
    except (OSError, optuna.exceptions.StorageInternalError) as error:
        failed = type(error).__name__
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    after = []
    for _ in range(3):  # three processes in turn, each of which opens the file
        try:
            study = optuna.load_study(study_name="study", storage=storage(kind))
            one_trial(study)
            after.append(f"{len(study.trials)} trials")
        except Exception as error:
            after.append(type(error).__name__)
    after = ", then ".join(after)
    print(f"{kind}: a write fails with {failed}; with room again: {after}")
PYTHON
"$folder/venv/bin/python" "$folder/study.py" "$folder" | tee "$folder/seen"
grep -q "^journal: .*JSONDecodeError, then JSONDecodeError$" "$folder/seen"
grep -q "^sqlite: .* trials, then .* trials, then .* trials$" "$folder/seen"
