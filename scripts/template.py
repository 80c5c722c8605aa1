"""Write where this template lives into the badges, links and setup cells: once, by its owner.

make template REPO=owner/name                                  installs from that repository
make template REPO=owner/name SOURCE=/content/drive/MyDrive/x  installs from a folder on Drive
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Files whose links to GitHub all lead to this repository, beside the notebooks.
LINKING = ["README.md", "CONTRIBUTING.md", "CITATION.cff", "pyproject.toml"]
_REPO = re.compile(
    r"(?<=colab\.research\.google\.com/github/)[^/\s]+/[^/\s]+(?=/blob/)"
    r"|(?<=https://github\.com/)[\w.-]+/[\w.-]+"
)
_SOURCE = re.compile(r'(?<=SOURCE = \\")[^"\\]+(?=\\")')  # as the JSON of a notebook has it


def files() -> list[Path]:
    """Every file that names the repository."""
    return [*sorted((ROOT / "notebooks").glob("*.ipynb")), *(ROOT / name for name in LINKING)]


def sources(text: str) -> set[str]:
    """The repositories and install sources that a file names."""
    return {*_REPO.findall(text), *_SOURCE.findall(text)}


def rewrite(text: str, repo: str, source: str) -> str:
    """The file for another repository and install source."""
    return _SOURCE.sub(source, _REPO.sub(repo, text))


def main(repo: str, source: str | None = None) -> None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        sys.exit(f"REPO={repo!r} should be owner/name, as in the address of the repository.")
    for path in files():
        text = path.read_text(encoding="utf-8")
        changed = rewrite(text, repo, source or f"git+https://github.com/{repo}")
        path.write_text(changed, encoding="utf-8")
        print(f"{'changed  ' if changed != text else 'unchanged'} {path.relative_to(ROOT)}")


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit("Usage: make template REPO=owner/name [SOURCE=/content/drive/MyDrive/folder]")
    main(*sys.argv[1:])
