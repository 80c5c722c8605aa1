"""Write where this repository lives into the badges, links and setup cells: once, by its owner.

make template                                                  as `git remote get-url origin` has it
make template REPO=owner/name                                  installs from that repository
make template REPO=owner/name SOURCE=/content/drive/MyDrive/x  installs from a folder on Drive
"""

import re
import subprocess
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
# https://github.com/owner/name.git, git@github.com:owner/name.git, ssh://git@github.com/owner/name
_REMOTE = re.compile(
    r"(?:(?:https|ssh|git)://(?:[^@/]+@)?github\.com(?::\d+)?/|(?:[^@/]+@)?github\.com:)"
    r"([\w.-]+/[\w.-]+?)(?:\.git)?/?"
)
UNNAMED = "OWNER/resnet_ft"


def files() -> list[Path]:
    """Every file that names the repository."""
    return [*sorted((ROOT / "notebooks").glob("*.ipynb")), *(ROOT / name for name in LINKING)]


def sources(text: str) -> set[str]:
    """The repositories and install sources that a file names."""
    return {*_REPO.findall(text), *_SOURCE.findall(text)}


def tag() -> str:
    """The tag of the release that the setup cells install."""
    module = (ROOT / "resnet_ft" / "__init__.py").read_text(encoding="utf-8")
    (version,) = re.findall(r'^__version__ = "(.+)"', module, re.MULTILINE)
    return f"v{version}"


def requirement(repo: str, source: str | None = None) -> str:
    """What the setup cells give to pip: a release of the repository, or a folder on Drive."""
    if source and source.startswith("/"):
        return f"{source.rstrip('/')}[colab]"
    return f"resnet_ft[colab] @ {source or f'git+https://github.com/{repo}@{tag()}'}"


def rewrite(text: str, repo: str, source: str) -> str:
    """The file for another repository and install source."""
    return _SOURCE.sub(source, _REPO.sub(repo, text))


def repository_of(address: str) -> str | None:
    """The owner/name in the address of a repository on GitHub; None for another address."""
    found = _REMOTE.fullmatch(address.strip())
    return found[1] if found else None


def origin() -> str:
    """The owner/name of this checkout's remote; ends the program where there is none."""
    command = ["git", "-C", str(ROOT), "remote", "get-url", "origin"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        sys.exit("git is not installed. Name the repository: make template REPO=owner/name")
    if run.returncode:
        sys.exit(
            "This checkout has no remote named origin. Name the repository: "
            "make template REPO=owner/name"
        )
    if (repo := repository_of(run.stdout)) is None:
        shown = re.sub(r"//[^@/]+@", "//", run.stdout.strip())  # without a password
        sys.exit(
            f"The remote origin, {shown}, is not a repository on GitHub, where Colab could open "
            "the notebooks. If there is one, name it: make template REPO=owner/name"
        )
    return repo


def check() -> None:
    """Warn while no repository is named."""
    texts = {path: path.read_text(encoding="utf-8") for path in files()}
    unnamed = [str(path.relative_to(ROOT)) for path, text in texts.items() if UNNAMED in text]
    if unnamed:
        print(
            f"warning: the badges and links of {len(unnamed)} files lead to {UNNAMED}, which does "
            "not exist. Once this repository is on GitHub, run `make template`.",
            file=sys.stderr,
        )


def main(repo: str, source: str | None = None) -> None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        sys.exit(f"REPO={repo!r} should be owner/name, as in the address of the repository.")
    installed = requirement(repo, source)
    for path in files():
        text = path.read_text(encoding="utf-8")
        changed = rewrite(text, repo, installed)
        path.write_text(changed, encoding="utf-8")
        print(f"{'changed  ' if changed != text else 'unchanged'} {path.relative_to(ROOT)}")
    if not source:
        print(
            f"The setup cells install the tag {tag()}. Commit these files, and publish it with\n"
            f"  git tag {tag()} && git push origin main {tag()}"
        )


if __name__ == "__main__":
    if len(sys.argv) > 3:
        sys.exit("Usage: make template [REPO=owner/name] [SOURCE=/content/drive/MyDrive/folder]")
    if sys.argv[1:] == ["--check"]:
        check()
    else:
        given = [*sys.argv[1:], "", ""]
        main(given[0] or origin(), given[1] or None)
