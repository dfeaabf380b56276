"""Speed on one machine: the rows, the processes that time them, tables and pictures; the work of ``numconv bench``.

`rows` names the problems. `measuring` runs numconv and its peers on them, each in a process of its own, in turns. `results` keeps
what came out, `tables` and `pictures` show it, `verdicts` tells a change from the noise. The folder `worker` is what runs in those
processes; it needs no part of numconv, so that it serves interpreters that have the peers only, and older versions.
"""
