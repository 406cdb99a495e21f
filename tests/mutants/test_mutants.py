"""The mutants themselves: each can be planted, those by rule are the same every time, and kills are real."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from threading import Timer, main_thread

import pytest

from tests.mutants.chosen import CHOSEN
from tests.mutants.cpp_rules import cpp_edits
from tests.mutants.equivalent import EQUIVALENT, SURVIVORS
from tests.mutants.generated import COUNT, generate
from tests.mutants.mutant import Mutant, StaleMutantError, read_source
from tests.mutants.python_rules import python_edits
from tests.mutants.report import update_report
from tests.mutants.results_file import ResultsFile
from tests.mutants.runner import Result, Runner, Verdict
from tests.mutants.sources import files_with, source_files
from tests.mutants.tree_copy import Limits, TreeCopy
from tests.mutants.which_tests import WhichTests

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_LIMITS = Limits()


@pytest.fixture(scope="module")
def generated() -> list[Mutant]:
    return generate(ROOT)


def planted(source: str, rule: str) -> list[str]:
    """The Python sources that a rule makes of one."""
    edits = (edit for edit in python_edits(source) if edit.rule == rule)
    return [source[: edit.start] + edit.text + source[edit.end :] for edit in edits]


class TestChosen:
    @pytest.mark.parametrize("mutant", CHOSEN, ids=lambda mutant: mutant.id)
    def test_can_be_planted(self, mutant: Mutant) -> None:
        try:
            source = read_source(ROOT, mutant.path)
            changed = mutant.apply(source)
        except StaleMutantError as error:
            places = ", ".join(files_with(ROOT, mutant.old)) or "no file"
            pytest.fail(f"{error}; it occurs exactly once in {places}", pytrace=False)
        assert changed != source
        if not mutant.is_native:
            assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))

    def test_are_many_and_have_names_of_their_own(self) -> None:
        assert len(CHOSEN) >= 40
        assert len({mutant.id for mutant in CHOSEN}) == len(CHOSEN)


class TestGenerated:
    def test_are_as_many_as_asked_for(self, generated: list[Mutant]) -> None:
        assert len(generated) == COUNT == 100
        assert len({mutant.id for mutant in generated}) == COUNT

    def test_are_the_same_every_time(self, generated: list[Mutant]) -> None:
        assert generate(ROOT) == generated

    def test_follow_the_seed(self, generated: list[Mutant]) -> None:
        ids = {mutant.id for mutant in generated}
        assert len(ids & {mutant.id for mutant in generate(ROOT, seed=1)}) < COUNT / 4

    def test_can_be_planted(self, generated: list[Mutant]) -> None:
        for mutant in generated:
            changed = mutant.apply(read_source(ROOT, mutant.path))
            if not mutant.is_native:
                compile(changed, mutant.path, "exec")

    def test_lie_in_every_package_that_has_functions(self, generated: list[Mutant]) -> None:
        def package(file: Path) -> str:
            return file.relative_to(ROOT).parent.as_posix()

        finders = {".py": python_edits, ".h": cpp_edits, ".cpp": cpp_edits}
        with_code = {
            package(file) for file in source_files(ROOT) if any(finders[file.suffix](file.read_text()))
        }
        assert {mutant.package for mutant in generated} == with_code

    def test_take_turns_in_their_rules(self, generated: list[Mutant]) -> None:
        rules = Counter(mutant.fault.partition(" in ")[0] for mutant in generated)
        assert len(rules) >= 8
        assert max(rules.values()) < COUNT / 3

    def test_a_change_of_one_file_leaves_the_others_mutants(self, tmp_path: Path) -> None:
        for name in ("one", "other"):
            file = tmp_path / "sparsebert" / name / "code.py"
            file.parent.mkdir(parents=True)
            file.write_text("def f(a, b):\n    return a + b\n\n\ndef g(a, b):\n    return a < b\n")
        before = generate(tmp_path, count=4)
        (tmp_path / "sparsebert" / "one" / "code.py").write_text("def f(a, b):\n    return a - b\n")
        after = generate(tmp_path, count=4)
        of_other = [mutant for mutant in before if "other" in mutant.path]
        assert of_other
        assert [mutant for mutant in after if "other" in mutant.path] == of_other


class TestPythonRules:
    @pytest.mark.parametrize(
        ("rule", "before", "after"),
        [
            ("comparison", "a < b", "a <= b"),
            ("comparison", "a is not None", "a is None"),
            ("arithmetic", "a * b", "a + b"),
            ("boolean", "a and b", "a or b"),
            ("negation", "not a", "(a)"),
            ("offset", "a[:-1]", "a[:-2]"),
            ("offset", "range(3)", "range(4)"),
            ("axis", "f(dim=-1)", "f(dim=0)"),
            ("flag", "f(keep=True)", "f(keep=False)"),
            ("swapped function", "x.amax(1)", "x.amin(1)"),
        ],
    )
    def test_replace_expressions(self, rule: str, before: str, after: str) -> None:
        assert planted(f"def f():\n    return {before}\n", rule) == [f"def f():\n    return {after}\n"]

    def test_drop_statements_and_checks(self) -> None:
        source = "def f(x):\n    if x:\n        raise ValueError(x + 1)\n    g(x)\n"
        assert planted(source, "skipped check") == [source.replace("if x", "if False")]
        assert planted(source, "dropped statement") == [source.replace("g(x)", "pass")]

    @pytest.mark.parametrize(
        "source",
        [
            'def f():\n    """1 + 1"""\n',
            "def f(a: int | None = 1 + 1) -> A[1]:\n    b: A[1]\n",
            "def __repr__(self):\n    return 1 + 1\n",
            "def f():\n    raise ValueError(1 + 1)\n",
            "def f():\n    print(1 + 1)\n",
            "LIMIT = 1 + 1\n",
            "if TYPE_CHECKING:\n    x = 1 + 1\n",
            "@g(1 + 1)\ndef f():\n    return None\n",
        ],
    )
    def test_leave_texts_types_and_constants_alone(self, source: str) -> None:
        assert not list(python_edits(source))

    def test_find_their_place_behind_wide_characters(self) -> None:
        source = 'def f(a, b):\n    return "é∗😀", a + b\n'
        assert planted(source, "arithmetic") == [source.replace("+", "-")]


class TestCppRules:
    def test_change_operators_offsets_and_statements(self) -> None:
        source = "int f(int* a, int n) {\n  g(n);\n  return a[n + 1];  // a + b\n}\n"
        edits = [(edit.rule, source[edit.start : edit.end], edit.text) for edit in cpp_edits(source)]
        assert edits == [
            ("dropped statement", "g(n);", ";"),
            ("arithmetic", " + ", " - "),
            ("offset", "1", "2"),
        ]

    def test_leave_macros_templates_and_headers_alone(self) -> None:
        assert not list(cpp_edits("#define N 1 + 1\ntemplate <int A = 1 + 1>\nint f(int a = 1 + 1) {\n}\n"))


@pytest.fixture(scope="module")
def which() -> WhichTests:
    return WhichTests(ROOT)


class TestWhichTests:
    def test_every_source_has_tests(self, which: WhichTests) -> None:
        paths = [file.relative_to(ROOT).as_posix() for file in source_files(ROOT)]
        assert not [path for path in paths if not which.own(Mutant("any", path, "", "", ""))]

    def test_the_file_of_the_modules_name_comes_first(self, which: WhichTests) -> None:
        mutant = Mutant("any", "sparsebert/pruning/top_k.py", "", "", "")
        assert which.own(mutant)[0] == "tests/pruning/test_top_k.py"

    def test_the_next_packages_follow(self, which: WhichTests) -> None:
        mutant = Mutant("any", "sparsebert/pruning/top_k.py", "", "", "")
        assert any(test.startswith("tests/lottery/") for test in which.related(mutant))
        assert not set(which.own(mutant)) & set(which.related(mutant))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A package of one function, with a test, under version control."""
    root = tmp_path / "project"
    files = {
        "sparsebert/sums/total.py": "def total(values):\n    return sum(values) + 0\n",
        "tests/sums/test_total.py": (
            "from sparsebert.sums.total import total\n\n\n"
            "def test_total():\n    assert total([1, 2]) == 3\n\n\n"
            "def test_always_wrong():\n    assert total([]) == 1\n"
        ),
        "pyproject.toml": "[tool.pytest.ini_options]\naddopts = ['--import-mode=importlib']\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    guard = root / "tests" / "mutants" / "guard.py"
    guard.parent.mkdir()
    guard.write_text((ROOT / "tests" / "mutants" / "guard.py").read_text())
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    return root


class TestRunner:
    def run(
        self, project: Path, *mutants: Mutant, limits: Limits = DEFAULT_LIMITS
    ) -> tuple[list[Result], Runner]:
        runner = Runner(project, project.parent / "work", 1, limits)
        return runner.run(mutants, lambda result: None), runner

    def mutant(self, new: str, old: str = "sum(values) + 0") -> Mutant:
        return Mutant("m", "sparsebert/sums/total.py", old, new, "wrong sum")

    def test_a_failing_test_kills(self, project: Path) -> None:
        (result,), runner = self.run(project, self.mutant("sum(values) - 1"))
        assert (result.verdict, result.stage) == (Verdict.KILLED, "own")
        assert result.by == "tests/sums/test_total.py::test_total"
        assert result.location == "sparsebert/sums/total.py:2"
        assert not runner.unproven([result], [self.mutant("sum(values) - 1")])

    def test_a_kill_by_a_test_that_fails_anyway_is_unproven(self, project: Path) -> None:
        mutant = self.mutant("sum(values) - 0")
        (result,), runner = self.run(project, mutant)
        assert result.by == "tests/sums/test_total.py::test_always_wrong"
        assert runner.unproven([result], [mutant]) == [result]

    def test_passing_tests_let_it_survive(self, project: Path) -> None:
        test = project / "tests" / "sums" / "test_total.py"
        test.write_text(test.read_text().partition("def test_always_wrong")[0])
        (result,), _ = self.run(project, self.mutant("sum(values) - 0"))
        assert result.verdict is Verdict.SURVIVED

    def test_a_loop_without_end_is_a_timeout(self, project: Path) -> None:
        endless = self.mutant("exec('while True: pass')")
        (result,), _ = self.run(project, endless, limits=Limits(test_seconds=1))
        assert result.verdict is Verdict.TIMEOUT
        assert result.by == "tests/sums/test_total.py::test_total"

    def test_code_that_cannot_be_imported_is_killed_in_collection(self, project: Path) -> None:
        broken = self.mutant("return (", old="return")
        (result,), runner = self.run(project, broken)
        assert (result.verdict, result.by) == (Verdict.KILLED, "collection")
        assert not runner.unproven([result], [broken])

    def test_a_run_that_is_stopped_ends_its_tests_and_judges_nothing(self, project: Path) -> None:
        endless = self.mutant("exec('while True: pass')")
        runner = Runner(project, project.parent / "work", 1, DEFAULT_LIMITS)
        results: list[Result] = []
        # A shell starts jobs in the background with the signal ignored.
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            Timer(3, signal.pthread_kill, (main_thread().ident, signal.SIGINT)).start()
            with pytest.raises(KeyboardInterrupt):
                runner.run([endless], results.append)
        finally:
            signal.signal(signal.SIGINT, handler)
        assert not results

    def test_text_that_is_gone_is_stale(self, project: Path) -> None:
        (result,), _ = self.run(project, self.mutant("", old="product(values)"))
        assert result.verdict is Verdict.STALE

    def test_the_next_mutant_finds_the_source_as_it_was(self, project: Path, tmp_path: Path) -> None:
        copy = TreeCopy(project, tmp_path / "copy", tmp_path / "objects")
        file = copy.root / "sparsebert" / "sums" / "total.py"
        before, time = file.read_text(), file.stat().st_mtime
        with copy.planted(self.mutant("sum(values) - 1")):
            assert "- 1" in file.read_text()
            assert int(file.stat().st_mtime) != int(time)
        assert (file.read_text(), file.stat().st_mtime) == (before, time)


class TestResultsFile:
    MUTANT = Mutant("m", "sparsebert/sums/total.py", "a", "b", "wrong sum")

    def result(self, verdict: Verdict) -> Result:
        return Result("m", self.MUTANT.fingerprint, "total.py:2", "wrong sum", verdict)

    def test_the_last_result_counts(self, tmp_path: Path) -> None:
        file = ResultsFile(tmp_path / "new" / "results.jsonl")
        file.clear()
        file.append(self.result(Verdict.SURVIVED))
        file.append(self.result(Verdict.KILLED))
        assert file.of([self.MUTANT]) == [self.result(Verdict.KILLED)]

    def test_a_line_that_was_cut_off_is_left_out(self, tmp_path: Path) -> None:
        path = tmp_path / "results.jsonl"
        path.write_text('{"id": "m", "finger')
        assert ResultsFile(path).of([self.MUTANT]) == []

    def test_results_of_another_replacement_do_not_count(self, tmp_path: Path) -> None:
        file = ResultsFile(tmp_path / "results.jsonl")
        file.clear()
        file.append(self.result(Verdict.KILLED))
        changed = Mutant("m", self.MUTANT.path, "a", "c", "wrong sum")
        assert file.of([changed]) == []


class TestReport:
    def test_counts_every_mutant_once_and_names_survivors(self, tmp_path: Path) -> None:
        mutants = [Mutant(id, "sparsebert/sums/total.py", "a", "b", "wrong sum") for id in "abcdef"]
        verdicts = (Verdict.KILLED, Verdict.TIMEOUT, Verdict.SURVIVED, Verdict.KILLED)
        results = [
            Result(mutant.id, mutant.fingerprint, "total.py:2", "wrong sum", verdict)
            for mutant, verdict in zip(mutants, verdicts, strict=False)
        ]
        document = tmp_path / "README.md"
        document.write_text("before\n<!-- mutants -->\nold\n<!-- /mutants -->\nafter\n")
        update_report(
            document, {"chosen": mutants}, results, results[3:], {"e": "adds zero"}, {"c": "needs a GPU"}
        )
        text = document.read_text()
        assert text.startswith("before\n<!-- mutants -->\nOn ")
        assert text.endswith("<!-- /mutants -->\nafter\n")
        assert "old" not in text
        assert (
            "| mutants | planted | killed | timeout | survived | stale | unproven | equivalent | not run |"
            in text
        )
        assert "| all | 4 | 1 | 1 | 1 | 0 | 1 | 1 | 1 |" in text
        assert "| c | total.py:2 | wrong sum | needs a GPU |" in text
        assert "| e | adds zero |" in text

    def test_a_document_without_a_section_is_refused(self, tmp_path: Path) -> None:
        document = tmp_path / "README.md"
        document.write_text("no markers")
        with pytest.raises(ValueError, match="must have one section"):
            update_report(document, {}, [], [], {}, {})


def test_equivalent_mutants_have_a_reason() -> None:
    assert all(len(reason) > 20 for reason in [*EQUIVALENT.values(), *SURVIVORS.values()])


def test_the_command_lists_mutants() -> None:
    command = [sys.executable, "-m", "tests.mutants", "--list", "--only", "top-k-bin"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "sparsebert/pruning/top_k.py" in listed
