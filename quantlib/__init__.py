"""A crypto-futures fund that one person researches, runs and audits from JupyterLab

Modules:

- `quantlib.core.clock`: One time for everything: the exchange's
- `quantlib.core.ids`: Names that are functions of content, so that a repeated step makes no second thing
- `quantlib.core.settings`: What a user may turn, typed, with ceilings that no file can raise
- `quantlib.core.types`: The words of the suite as small immutable values, from a vote to a verdict
- `quantlib.data.synthetic`: A market made from a seed: it moves like crypto, and what can be predicted in it is known
- `quantlib.journal.bus`: Messages that cannot be lost, because they are rows of the transaction that caused them
- `quantlib.journal.schema`: The tables of the journal: every row names the row that caused it
- `quantlib.journal.store`: The journal: durable, append-minded, safe for several processes
- `quantlib.models.boosting`: Two kinds of boosted trees that forecast where a return is centred, and an honest width measured on bars they did not learn from
- `quantlib.models.forecast`: What a model says about a symbol: five quantiles of its scaled return at three horizons, never a bare number
- `quantlib.sandbox.contracts`: What each perpetual may be traded in: ticks, steps, limits and leverage tiers
- `quantlib.schedule.zygote`: Hand-written: a forking daemon of signals, sockets and process groups cannot be hosted by a notebook kernel; `nbs/schedule/01_kernels` teaches its use."""

__version__ = "0.1.0"
