"""Dockerfiles to images.

Five steps, the first four pure: bytes → nodes with line ranges (``parser``) → typed instructions
(``instructions``, with ``shellwords`` for variables) → stages and what they need (``graph``) → execution
(``solve``), which alone awaits, and knows the engine only through ``ports``. ``cachekey`` says what
identifies a step. Both front doors share all but ``solve``, which is the classic builder's.

A context is never unpacked: ``trees`` indexes its archive, ``sources`` finds in it what COPY and ADD name,
and ``layer`` makes the new layer's tar out of ranges of it.
"""
