"A secret that must be nowhere, and the search for it"
import re
import sqlite3
from pathlib import Path

CANARY = ('canarykey-7f3a9c51', 'canarysecret-b2e84d06')
KEYLIKE = re.compile(r'(?<![A-Za-z0-9/+=_-])(?=[A-Za-z0-9]*[A-Z])(?=[A-Za-z0-9]*[a-z])(?=[A-Za-z0-9]*\d)[A-Za-z0-9]{64}(?![A-Za-z0-9/+=_-])')
SIGNED = re.compile(r'signature=[0-9a-f]{64}')


def texts(path):
    "What a file says: the rows of a database, else its bytes"
    if path.suffix in ('.db', '.sqlite'):
        with sqlite3.connect(path) as c:
            for (t,) in c.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                for row in c.execute(f'SELECT * FROM "{t}"'): yield f'{t}: ' + ' '.join(map(str, row))
    yield path.read_bytes().decode('utf8', 'replace')


def traces(folder, secrets, but=()):
    "Where in `folder` a secret, a signature or what looks like a key of Binance stands"
    out = []
    for p in sorted(Path(folder).rglob('*')):
        if not p.is_file() or p.name in but: continue
        for text in texts(p):
            out += [f'{p.name}: {text[max(0, text.find(x) - 60):text.find(x) + 20]!r}' for x in secrets if x in text]
            if p.suffix in ('.log', '.ipynb', '.jsonl', '.html', '.db'): out += [f'{p.name}: {m[0][:24]}…' for r in (KEYLIKE, SIGNED) for m in [r.search(text)] if m]
    return out


def environs(words):
    "Processes of this user whose environment holds one of the words, by pid and command"
    out = []
    for p in Path('/proc').glob('[0-9]*'):
        try: env, cmd = (p/'environ').read_text(errors='replace'), (p/'cmdline').read_text(errors='replace').replace('\0', ' ')
        except OSError: continue
        if any(w in env for w in words): out.append((int(p.name), cmd[:80]))
    return out
