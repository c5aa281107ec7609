"""Hand-written: a forking daemon of signals, sockets and process groups cannot be hosted by a notebook kernel; `nbs/schedule/01_kernels` teaches its use.

Run as `python zygote.py SOCKET [--owned]`, never imported into a kernel. It imports the third-party libraries once, checks that it has exactly
one thread, and then forks one Jupyter kernel per request. It never imports this project: a kernel must see today's code.

Wire format, both ways: four bytes of length (big endian), then JSON. A kernel request carries two descriptors (stdout, stderr); its answer carries a
pidfd of the kernel. The connection then stays open: the zygote writes the exit status into it, and when the client's end closes, the kernel ends.
"""
import argparse, errno, gc, hashlib, importlib, json, os, selectors, signal, socket, struct, sys, threading, time

# Read by native libraries when they load. Each one keeps a library from starting a thread of its own; a fork copies only the calling thread,
# and whoever waits for one of the others waits forever.
SAFE_ENV = {
    'OPENBLAS_NUM_THREADS': '1',
    'OMP_WAIT_POLICY': 'PASSIVE',  # waiting OpenMP threads sleep: no seconds lost to spinning beside a busy neighbour
    'JE_ARROW_MALLOC_CONF': 'background_thread:false',  # pyarrow's allocator
    '_RJEM_MALLOC_CONF': 'background_thread:false',  # deltalake's allocator
    'MPLBACKEND': 'module://matplotlib_inline.backend_inline',  # before pyplot loads, or plots vanish from the notebooks
}
PRELOAD = tuple('''numpy pandas pyarrow.parquet pyarrow.dataset scipy.stats sklearn talib xgboost lightgbm torch vectorbt deltalake sqlalchemy
    sqlalchemy.orm sqlalchemy.dialects.sqlite pydantic binance.client fastcore.all matplotlib.pyplot matplotlib.backends.backend_agg nbformat
    papermill.execute sqlite3 IPython.core.pylabtools IPython.core.completerlib IPython.core.debugger IPython.core.oinspect IPython.extensions.storemagic
    ipykernel.kernelapp ipykernel.ipkernel ipykernel.zmqshell ipykernel.debugger tornado.platform.asyncio'''.split())


def packages_digest() -> str:
    "A digest of the interpreter and of every installed distribution but this project; another value means that a warm kernel would be stale"
    seen = [sys.version, sys.executable]
    for folder in sorted({p for p in sys.path if p.endswith(('site-packages', 'dist-packages')) and os.path.isdir(p)}):
        for entry in sorted(os.scandir(folder), key=lambda e: e.name):
            if entry.name.endswith('.dist-info') and not entry.name.startswith('quantlib-'): seen.append(f'{entry.name}:{entry.stat().st_mtime_ns}')
    return hashlib.sha256('\n'.join(seen).encode()).hexdigest()[:16]


def send(conn:socket.socket, message:dict, fds=()) -> None:
    "Write `message`, and the descriptors `fds` with its first bytes"
    body = json.dumps(message).encode()
    head = struct.pack('>I', len(body))
    socket.send_fds(conn, [head], list(fds)) if fds else conn.sendall(head)
    conn.sendall(body)


def receive(conn:socket.socket, max_fds:int=2) -> tuple[dict, list[int]]:
    "The next message and its descriptors; `EOFError` when the other side is gone"
    head, fds, _, _ = socket.recv_fds(conn, 4, max_fds)
    try:
        while len(head) < 4: head += _some(conn, 4 - len(head))
        size, body = struct.unpack('>I', head)[0], b''
        while len(body) < size: body += _some(conn, size - len(body))
        return json.loads(body), list(fds)
    except BaseException:
        for fd in fds: os.close(fd)
        raise


def _some(conn, n):
    data = conn.recv(n)
    if not data: raise EOFError('the other side closed the connection in the middle of a message')
    return data


def threads() -> int:
    "How many threads the kernel of the operating system counts in this process"
    return len(os.listdir('/proc/self/task'))


def preload() -> dict:
    "Import the libraries, and load what their first use reads (fonts, formatters); returns seconds and what is not installed"
    started, missing = time.monotonic(), []
    sys.modules.setdefault('rfc3987_syntax', None)  # 2 s of grammar building for a check nobody uses; jsonschema copes without
    for name in PRELOAD:
        try: importlib.import_module(name)
        except ModuleNotFoundError as e: missing.append(f'{name}: {e}')
    if 'matplotlib' in sys.modules:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        figure = Figure(); figure.subplots().plot([0, 1]); FigureCanvasAgg(figure).draw()
    return dict(seconds=round(time.monotonic() - started, 2), missing=missing)


class Zygote:
    "Listens on `path` and forks a kernel per request; `owned` ends it when its standard input closes, i.e. when the process that started it is gone"
    def __init__(self, path:str, owned:bool, facts:dict):
        self.path, self.owned, self.facts = path, owned, facts
        self.mark, self.served, self.children = packages_digest(), 0, {}
        self.selector = selectors.DefaultSelector()
        self.listener = self.bind()
        self.listener.listen(16)
        self.inode = os.stat(path).st_ino
        self.selector.register(self.listener, selectors.EVENT_READ, 'client')
        if owned: self.selector.register(0, selectors.EVENT_READ, 'owner')

    def bind(self) -> socket.socket:
        "A socket at `path` for this user only; a file left by a dead zygote is replaced, a living one is not"
        listener, old = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), os.umask(0o177)
        try: listener.bind(self.path)
        except OSError as e:
            if e.errno != errno.EADDRINUSE: raise
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(self.path) == 0: raise SystemExit(f'zygote: another one serves {self.path}')
            os.unlink(self.path)
            listener.bind(self.path)
        finally: os.umask(old)
        return listener

    def serve(self) -> dict|None:
        "Answer until stopped (returns None); in a forked child, return the request at once so that every frame of the server is left behind"
        while True:
            for key, _ in self.selector.select():
                if key.data == 'owner':
                    if not os.read(0, 1024): return None
                elif key.data == 'client':
                    request = self.answer()
                    if request: return request
                else: self.reap(key.fd, *key.data)

    def answer(self) -> dict|None:
        "Take one request; returns it only in the forked child"
        conn, _ = self.listener.accept()
        conn.settimeout(2)
        child, fds = None, []
        try:
            uid = struct.unpack('3i', conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
            if uid != os.getuid(): raise PermissionError(f'user {uid} may not use the zygote of user {os.getuid()}')
            request, fds = receive(conn)
            if request['op'] == 'kernel': child = self.fork(conn, request, fds)
            elif request['op'] == 'ping': send(conn, self.status()); conn.close()
            elif request['op'] == 'stop': send(conn, {'stopping': os.getpid()}); raise SystemExit(0)
            else: raise ValueError(f'unknown request {request["op"]!r}')
        except (OSError, EOFError, ValueError, KeyError, TypeError) as e:
            print(f'zygote: a request failed: {e!r}', file=sys.stderr, flush=True)
            conn.close()
        finally:
            if child is None:
                for fd in fds: os.close(fd)
        return child

    def status(self) -> dict:
        rss = next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmRSS'))
        return dict(pid=os.getpid(), python=sys.executable, threads=threads(), fingerprint=self.mark, served=self.served,
            kernels=len(self.children), rss_mb=rss // 1024, **self.facts)

    def fork(self, conn, request, fds):
        if packages_digest() != self.mark: self.renew(conn)
        if request['python'] != sys.executable:
            send(conn, {'refused': f'this zygote runs {sys.executable}, the kernel asks for {request["python"]}'}); return conn.close()
        if threads() != 1: send(conn, {'refused': f'{threads()} threads: a fork would hang'}); return conn.close()
        ready, done = os.pipe()
        pid = os.fork()
        if pid == 0:
            try: self.detach(); os.close(ready); os.close(done)
            except BaseException: os._exit(70)
            return dict(request, conn=conn, fds=fds)
        os.close(done); os.read(ready, 1); os.close(ready)  # the child has its own process group from here on
        pidfd = os.pidfd_open(pid)  # before anyone can reap the child: the number cannot have been given to another process
        self.served += 1
        self.children[pidfd] = pid
        self.selector.register(pidfd, selectors.EVENT_READ, (pid, conn))
        try: send(conn, {'pid': pid}, [pidfd])
        except OSError: os.kill(pid, signal.SIGKILL)

    def reap(self, pidfd, pid, conn) -> None:
        "Tell the client how its kernel ended"
        self.selector.unregister(pidfd); os.close(pidfd); del self.children[pidfd]
        _, status = os.waitpid(pid, 0)
        try: send(conn, {'exit': os.waitstatus_to_exitcode(status)})
        except OSError: pass  # the client is gone; nobody is left to tell
        conn.close()

    def renew(self, conn) -> None:
        "Start over with the packages as they are now; until then clients get cold kernels"
        send(conn, {'refused': 'packages changed: the zygote starts again'}); conn.close()
        self.unlink()
        print('zygote: packages changed, starting again', file=sys.stderr, flush=True)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

    def detach(self) -> None:
        "In the child: a session of its own, default signals, and nothing open that belongs to the server"
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGCHLD): signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setsid()
        for key in list(self.selector.get_map().values()):
            if isinstance(key.data, tuple): key.data[1].close(); os.close(key.fd)
        self.selector.close(); self.listener.close()

    def unlink(self) -> None:
        try:
            if os.stat(self.path).st_ino == self.inode: os.unlink(self.path)
        except FileNotFoundError: pass


def become_kernel(request:dict) -> None:
    "Turn this fresh fork into the Jupyter kernel that `request` describes; returns when the kernel was asked to stop"
    null = os.open(os.devnull, os.O_RDONLY)
    for fd, target in zip((null, *request['fds']), (0, 1, 2)): os.dup2(fd, target); os.close(fd)
    os.environ.clear()
    os.environ.update({'MPLBACKEND': SAFE_ENV['MPLBACKEND'], 'OMP_WAIT_POLICY': 'PASSIVE'} | request['env'])
    os.environ.pop('JPY_PARENT_PID', None)  # the parent is the zygote, not the owner; `follow` watches the owner
    os.chdir(request['cwd'])
    for path in reversed(os.environ.get('PYTHONPATH', '').split(os.pathsep)):
        if path and path not in sys.path: sys.path.insert(0, path)
    reseed()
    threading.Thread(target=follow, args=(request['conn'],), daemon=True, name='owner').start()
    gc.enable()
    from ipykernel.kernelapp import IPKernelApp

    class WarmKernelApp(IPKernelApp):
        def init_poller(self): pass  # it would watch the zygote

    sys.argv = ['ipykernel_launcher', *request['argv']]
    WarmKernelApp.launch_instance(sys.argv[1:], parent_handle=os.getppid())


def reseed() -> None:
    "Give this process random numbers of its own: a fork inherits the generators' state"
    import random
    random.seed()
    if 'numpy' in sys.modules: sys.modules['numpy'].random.seed()
    if 'torch' in sys.modules: sys.modules['torch'].default_generator.seed()  # the CPU's only; the zygote must not touch a GPU


def follow(conn:socket.socket) -> None:
    "Wait until the owner's end of `conn` closes, then end this kernel and everything it started in its group"
    conn.settimeout(None)
    try:
        while conn.recv(1): pass
    except OSError: pass
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description='Fork warm Jupyter kernels')
    parser.add_argument('socket')
    parser.add_argument('--owned', action='store_true', help='end when standard input closes')
    args = parser.parse_args()
    os.environ.update(SAFE_ENV)
    gc.disable()
    facts = preload()
    if threads() != 1: raise SystemExit(f'zygote: {threads()} threads after the imports; forks would hang, so kernels stay cold')
    gc.collect(); gc.freeze()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    zygote = Zygote(args.socket, args.owned, facts)
    request = None
    try: request = zygote.serve()
    finally:
        if request is None: zygote.unlink()
    if request: become_kernel(request)


if __name__ == '__main__':
    sys.path.pop(0)  # this file's folder: its siblings are no top-level modules
    main()
