"""Names of containers and other objects: what is allowed, what is made up, and how a reference finds its object."""

import re
import secrets
from collections.abc import Iterable

from compatd.errors import InvalidParameter

# moby daemon/names/names.go, RestrictedNamePattern
_RESTRICTED = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_ID = re.compile(r"[0-9a-f]{1,64}")

_ADJECTIVES = (
    "able amber apt arctic autumn bold brave breezy bright brisk calm candid careful cheerful civil clear "
    "clever cosmic cosy crisp curious daring deft eager early earnest easy elated epic exact fair famous "
    "fancy fast fearless festive fine firm fluent fond frank free fresh friendly gentle glad golden grand "
    "great happy hardy helpful hopeful humble jolly jovial keen kind lively logical lucid lucky mellow "
    "merry mighty modest neat nimble noble patient placid playful plucky polite proud prudent quick quiet "
    "quirky rapid ready robust rustic sharp silent sincere sleek smart snowy solid steady stoic sunny "
    "swift tender tidy trusty upbeat vivid vocal warm wise witty zealous zen"
).split()
_NOUNS = (
    "abel adams agnesi ampere archimedes avogadro babbage banach bardeen bell bernoulli bohr boole bose "
    "brahe brattain carson cauchy cerf chandrasekhar clarke copernicus coulomb cray curie darwin dijkstra "
    "dirac edison einstein euclid euler faraday fermat fermi feynman fibonacci franklin galileo galois "
    "gauss germain goodall goldberg hamilton hawking heisenberg herschel hertz hilbert hopper hypatia "
    "jacobi joliot kalam kapitsa kepler knuth kowalevski lagrange lamarr laplace leakey leavitt lovelace "
    "lumiere maxwell mayer mccarthy mendel mendeleev meitner mirzakhani morse nash newton nightingale "
    "nobel noether pascal pasteur pauling perlman planck poincare ptolemy raman ramanujan ritchie "
    "rosalind rubin sammet shannon sinoussi snyder stallman swirles tesla thompson torvalds turing "
    "villani volta wiles wilson wright wu yalow"
).split()


def new_id() -> str:
    """64 random hexadecimal digits, never all decimal: a truncated id must not read as a number (moby pkg/stringid)."""
    while True:
        candidate = secrets.token_hex(32)
        if not candidate[:12].isdecimal():
            return candidate


def make_up(taken: Iterable[str]) -> str:
    """A free container name of the form adjective_noun, with a digit when most are taken."""
    used = set(taken)
    for _ in range(6):
        name = f"{secrets.choice(_ADJECTIVES)}_{secrets.choice(_NOUNS)}"
        if name not in used:
            return name
    while True:
        name = f"{secrets.choice(_ADJECTIVES)}_{secrets.choice(_NOUNS)}{secrets.randbelow(10_000)}"
        if name not in used:
            return name


def check_container_name(name: str) -> str:
    """``name`` without the leading slash some clients send. ``InvalidParameter`` as moby daemon/names.go."""
    bare = name.removeprefix("/")
    if not _RESTRICTED.fullmatch(bare):
        raise InvalidParameter(f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
    return bare


def find(reference: str, ids: Iterable[str]) -> list[str]:
    """The ids that ``reference`` is a prefix of; none when it is not hexadecimal."""
    if not _ID.fullmatch(reference):
        return []
    return [candidate for candidate in ids if candidate.startswith(reference)]
