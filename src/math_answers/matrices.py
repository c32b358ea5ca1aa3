"""Matrices worked out: multiples, sums, products, powers, transposes and determinants of written ones."""

from math_answers.evaluation import evaluate, is_exact, spend
from math_answers.expressions import (
    Apply,
    Expression,
    Listed,
    Matrix,
    Number,
    Symbol,
    UnreadableError,
    mapped,
    parts,
    symbols,
)

_MAX_NODES = 4000  # of all entries of a product
_MAX_DETERMINANT = 5
_OPERATIONS = frozenset({"add", "mul", "neg", "pow", "det", "call", "inv"})


def folded(expression: Expression) -> Expression:
    """The expression with every operation on matrices worked out; as it is where there are none, or it cannot be."""
    if not isinstance(expression, Apply) or not _has_matrix(expression):
        if isinstance(expression, Matrix | Listed) or not _has_matrix(expression):
            return expression
        return mapped(expression, folded)
    arguments = tuple(map(folded, expression.arguments))
    spend(10)
    result = _folded_once(expression, arguments)
    return Apply(expression.operation, arguments, expression.name) if result is None else result


def _folded_once(expression: Apply, arguments: tuple[Expression, ...]) -> Expression | None:
    match expression.operation, arguments:
        case "det", (Matrix() as matrix,):
            return _determinant(matrix)
        case "neg", (Matrix() as matrix,):
            return _each(matrix, lambda entry: Apply("neg", (entry,)))
        case "add", terms:
            return _sum(terms)
        case "mul", factors:
            return _product(factors)
        case "pow", (
            Matrix() as matrix,
            Symbol(name="T" | "top" | "\\top" | "t" | "'T" | "'t" | "\\intercal"),
        ):
            return Matrix(tuple(zip(*matrix.rows, strict=True)))
        case "pow", (Matrix() as matrix, Number(value=power)) if power.denominator == 1 and 1 <= power <= 8:
            result: Expression | None = matrix
            for _ in range(int(power) - 1):
                result = _product((result, matrix)) if result is not None else None
            return result
    return None


def _has_matrix(expression: Expression) -> bool:
    return isinstance(expression, Matrix) or any(map(_has_matrix, parts(expression)))


def _each(matrix: Matrix, change: "object") -> Matrix:
    return Matrix(tuple(tuple(change(entry) for entry in row) for row in matrix.rows))  # type: ignore[operator]


def _sum(terms: tuple[Expression, ...]) -> Expression | None:
    matrices = [term for term in terms if isinstance(term, Matrix)]
    if len(matrices) != len(terms) or len({(len(m.rows), len(m.rows[0])) for m in matrices}) != 1:
        return None
    return Matrix(
        tuple(
            tuple(Apply("add", entries) for entries in zip(*rows, strict=True))
            for rows in zip(*(matrix.rows for matrix in matrices), strict=True)
        )
    )


def _product(factors: tuple[Expression, ...]) -> Expression | None:
    scalars = [factor for factor in factors if not isinstance(factor, Matrix)]
    if any(_has_matrix(scalar) for scalar in scalars):
        return None
    result: Matrix | None = None
    for matrix in (factor for factor in factors if isinstance(factor, Matrix)):
        if result is None:
            result = matrix
            continue
        if len(result.rows[0]) != len(matrix.rows):
            return None
        largest = max(_size(entry) for side in (result, matrix) for entry in parts(side))
        if len(result.rows) * len(matrix.rows[0]) * len(matrix.rows) * largest > _MAX_NODES:
            return None
        columns = list(zip(*matrix.rows, strict=True))
        result = Matrix(tuple(tuple(_dot(row, column) for column in columns) for row in result.rows))
    if result is None or not scalars:
        return result
    return _each(result, lambda entry: Apply("mul", (*scalars, entry)))


def _dot(row: tuple[Expression, ...], column: tuple[Expression, ...]) -> Expression:
    total = Apply("add", tuple(Apply("mul", pair) for pair in zip(row, column, strict=True)))
    if not symbols(total):
        try:
            value = evaluate(total, {})
        except UnreadableError:
            return total
        if is_exact(value):
            return Number(value)
    return total


def _size(expression: Expression) -> int:
    return 1 + sum(map(_size, parts(expression)))


def _determinant(matrix: Matrix) -> Expression | None:
    size = len(matrix.rows)
    if size != len(matrix.rows[0]) or size > _MAX_DETERMINANT:
        return None
    if size == 1:
        return matrix.rows[0][0]
    terms: list[Expression] = []
    for column, entry in enumerate(matrix.rows[0]):
        minor = Matrix(tuple(row[:column] + row[column + 1 :] for row in matrix.rows[1:]))
        inner = _determinant(minor)
        assert inner is not None
        term = Apply("mul", (entry, inner))
        terms.append(Apply("neg", (term,)) if column % 2 else term)
    return Apply("add", tuple(terms))
