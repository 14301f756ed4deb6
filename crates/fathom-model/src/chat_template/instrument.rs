//! Rewrites a parsed template so that everything it builds is charged to its budget.
//!
//! The engine's operators cannot be overridden, so `a ~ b` and `a * b` become calls of our own
//! functions. The inputs and outputs of all other operations that copy values pass through the
//! filter [`CHARGE`]. Text between tags becomes an expression, so that the formatter sees all
//! output.

use minijinja::Value;
use minijinja::machinery::Span;
use minijinja::machinery::ast::{self, BinOpKind, CallArg, Expr, Spanned, Stmt};

/// A filter that charges a value and returns it.
pub(super) const CHARGE: &str = "__charge";
/// A filter that returns a value that Python can iterate over and rejects any other.
pub(super) const ITERATE: &str = "__iterate";
/// A filter that rejects None and undefined as an operand of `<`, `<=`, `>` and `>=`.
pub(super) const ORDER: &str = "__order";
/// The function behind `~`.
pub(super) const CONCAT: &str = "__concat";
/// The function behind `*`.
pub(super) const MULTIPLY: &str = "__multiply";
/// The function behind `loop.cycle(…)`; the engine's own panics without arguments.
pub(super) const CYCLE: &str = "__cycle";

/// Filters, tests and methods that do not traverse their value. They are not charged, because
/// templates apply them to the whole conversation inside loops.
const FREE_FILTERS: [&str; 6] = ["length", "count", "first", "last", "default", "d"];
/// Filters that iterate over their value.
const ITERATING_FILTERS: [&str; 13] = [
    "groupby",
    "join",
    "list",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "reverse",
    "select",
    "selectattr",
    "sort",
    "unique",
];
const FREE_TESTS: [&str; 14] = [
    "defined",
    "undefined",
    "none",
    "string",
    "number",
    "integer",
    "float",
    "boolean",
    "mapping",
    "iterable",
    "sequence",
    "true",
    "false",
    "odd",
];
const FREE_METHODS: [&str; 3] = ["get", "startswith", "endswith"];

/// The statement with all its expressions rewritten.
pub(super) fn statement<'a>(stmt: &Stmt<'a>) -> Stmt<'a> {
    match stmt {
        Stmt::Template(node) => {
            Stmt::Template(at(node, ast::Template { children: body(&node.children) }))
        }
        Stmt::EmitExpr(node) => {
            Stmt::EmitExpr(at(node, ast::EmitExpr { expr: expression(&node.expr) }))
        }
        Stmt::EmitRaw(node) => {
            let text = Expr::Const(at(node, ast::Const { value: Value::from(node.raw) }));
            Stmt::EmitExpr(at(node, ast::EmitExpr { expr: text }))
        }
        Stmt::ForLoop(node) => Stmt::ForLoop(at(
            node,
            ast::ForLoop {
                target: target(&node.target),
                iter: filtered(ITERATE, expression(&node.iter)),
                filter_expr: node.filter_expr.as_ref().map(expression),
                recursive: node.recursive,
                body: body(&node.body),
                else_body: body(&node.else_body),
            },
        )),
        Stmt::IfCond(node) => Stmt::IfCond(at(
            node,
            ast::IfCond {
                expr: expression(&node.expr),
                true_body: body(&node.true_body),
                false_body: body(&node.false_body),
            },
        )),
        Stmt::WithBlock(node) => {
            let assign = |(name, value): &(Expr<'a>, Expr<'a>)| (target(name), expression(value));
            let assignments = node.assignments.iter().map(assign).collect();
            Stmt::WithBlock(at(node, ast::WithBlock { assignments, body: body(&node.body) }))
        }
        Stmt::Set(node) => Stmt::Set(at(
            node,
            ast::Set { target: target(&node.target), expr: expression(&node.expr) },
        )),
        Stmt::SetBlock(node) => Stmt::SetBlock(at(
            node,
            ast::SetBlock {
                target: target(&node.target),
                filter: node.filter.as_ref().map(expression),
                body: body(&node.body),
            },
        )),
        Stmt::AutoEscape(node) => Stmt::AutoEscape(at(
            node,
            ast::AutoEscape { enabled: expression(&node.enabled), body: body(&node.body) },
        )),
        Stmt::FilterBlock(node) => Stmt::FilterBlock(at(
            node,
            ast::FilterBlock { filter: expression(&node.filter), body: body(&node.body) },
        )),
        Stmt::Macro(node) => Stmt::Macro(macro_(node)),
        Stmt::CallBlock(node) => Stmt::CallBlock(at(
            node,
            ast::CallBlock { call: call(&node.call), macro_decl: macro_(&node.macro_decl) },
        )),
        Stmt::Continue(node) => Stmt::Continue(at(node, ast::Continue)),
        Stmt::Break(node) => Stmt::Break(at(node, ast::Break)),
        Stmt::Do(node) => Stmt::Do(at(node, ast::Do { call: call(&node.call) })),
        // `check_tokens` rejects statements that refer to other templates.
        Stmt::Block(node) => empty(node.span()),
        Stmt::Import(node) => empty(node.span()),
        Stmt::FromImport(node) => empty(node.span()),
        Stmt::Extends(node) => empty(node.span()),
        Stmt::Include(node) => empty(node.span()),
    }
}

/// Whether a `break` or `continue` is outside a loop or inside a block other than `if` within its
/// loop. The engine would jump out of such a block without restoring its state.
pub(super) fn has_loose_jump(statements: &[Stmt], in_loop: bool) -> bool {
    statements.iter().any(|stmt| match stmt {
        Stmt::Continue(_) | Stmt::Break(_) => !in_loop,
        Stmt::Template(node) => has_loose_jump(&node.children, in_loop),
        Stmt::ForLoop(node) => {
            has_loose_jump(&node.body, true) || has_loose_jump(&node.else_body, in_loop)
        }
        Stmt::IfCond(node) => {
            has_loose_jump(&node.true_body, in_loop) || has_loose_jump(&node.false_body, in_loop)
        }
        Stmt::WithBlock(node) => has_loose_jump(&node.body, false),
        Stmt::SetBlock(node) => has_loose_jump(&node.body, false),
        Stmt::AutoEscape(node) => has_loose_jump(&node.body, false),
        Stmt::FilterBlock(node) => has_loose_jump(&node.body, false),
        Stmt::Macro(node) => has_loose_jump(&node.body, false),
        Stmt::CallBlock(node) => has_loose_jump(&node.macro_decl.body, false),
        _ => false,
    })
}

/// The expression with everything it builds charged.
fn expression<'a>(expr: &Expr<'a>) -> Expr<'a> {
    match expr {
        Expr::Var(node) => Expr::Var(at(node, ast::Var { id: node.id })),
        Expr::Const(node) => Expr::Const(at(node, ast::Const { value: node.value.clone() })),
        Expr::Slice(node) => charged(Expr::Slice(at(
            node,
            ast::Slice {
                expr: charged(expression(&node.expr)),
                start: node.start.as_ref().map(expression),
                stop: node.stop.as_ref().map(expression),
                step: node.step.as_ref().map(expression),
            },
        ))),
        Expr::UnaryOp(node) => Expr::UnaryOp(at(
            node,
            ast::UnaryOp {
                op: match node.op {
                    ast::UnaryOpKind::Not => ast::UnaryOpKind::Not,
                    ast::UnaryOpKind::Neg => ast::UnaryOpKind::Neg,
                },
                expr: expression(&node.expr),
            },
        )),
        Expr::BinOp(node) => {
            let (left, right) = (expression(&node.left), expression(&node.right));
            match node.op {
                BinOpKind::Concat => function(CONCAT, left, right, node.span()),
                BinOpKind::Mul => function(MULTIPLY, left, right, node.span()),
                // The result is one of the operands, so there is nothing to charge.
                op @ (BinOpKind::ScAnd | BinOpKind::ScOr) => {
                    Expr::BinOp(at(node, ast::BinOp { op, left, right }))
                }
                op @ (BinOpKind::Lt | BinOpKind::Lte | BinOpKind::Gt | BinOpKind::Gte) => {
                    let ordered = |side| filtered(ORDER, charged(side));
                    let (left, right) = (ordered(left), ordered(right));
                    Expr::BinOp(at(node, ast::BinOp { op, left, right }))
                }
                op @ BinOpKind::In => {
                    let right = filtered(ITERATE, charged(right));
                    Expr::BinOp(at(node, ast::BinOp { op, left: charged(left), right }))
                }
                op => Expr::BinOp(at(
                    node,
                    ast::BinOp { op, left: charged(left), right: charged(right) },
                )),
            }
        }
        Expr::Compare(node) => {
            let operand = |operand: &ast::CompareOp<'a>| ast::CompareOp {
                op: operand.op,
                expr: charged(expression(&operand.expr)),
            };
            let ops = node.ops.iter().map(operand).collect();
            Expr::Compare(at(node, ast::Compare { expr: charged(expression(&node.expr)), ops }))
        }
        Expr::IfExpr(node) => Expr::IfExpr(at(
            node,
            ast::IfExpr {
                test_expr: expression(&node.test_expr),
                true_expr: expression(&node.true_expr),
                false_expr: node.false_expr.as_ref().map(expression),
            },
        )),
        Expr::Filter(node) => {
            let value = |value| match node.name {
                name if FREE_FILTERS.contains(&name) => expression(value),
                name if ITERATING_FILTERS.contains(&name) => {
                    filtered(ITERATE, charged(expression(value)))
                }
                _ => charged(expression(value)),
            };
            let expr = node.expr.as_ref().map(value);
            let filter = ast::Filter { name: node.name, expr, args: arguments(&node.args) };
            charged(Expr::Filter(at(node, filter)))
        }
        Expr::Test(node) => {
            let expr = match FREE_TESTS.contains(&node.name) {
                true => expression(&node.expr),
                false => charged(expression(&node.expr)),
            };
            let test = ast::Test { name: node.name, expr, args: arguments(&node.args) };
            Expr::Test(at(node, test))
        }
        Expr::GetAttr(node) => {
            Expr::GetAttr(at(node, ast::GetAttr { expr: expression(&node.expr), name: node.name }))
        }
        Expr::GetItem(node) => Expr::GetItem(at(
            node,
            ast::GetItem {
                expr: expression(&node.expr),
                subscript_expr: charged(expression(&node.subscript_expr)),
            },
        )),
        Expr::Call(node) => charged(Expr::Call(call(node))),
        Expr::List(node) => {
            let items = node.items.iter().map(expression).collect();
            charged(Expr::List(at(node, ast::List { items })))
        }
        Expr::Map(node) => {
            let keys = node.keys.iter().map(expression).collect();
            let values = node.values.iter().map(expression).collect();
            charged(Expr::Map(at(node, ast::Map { keys, values })))
        }
    }
}

/// The target of an assignment (`x`, `ns.x`, `(x, y)`), which must not become a filter call.
fn target<'a>(expr: &Expr<'a>) -> Expr<'a> {
    match expr {
        Expr::List(node) => {
            let items = node.items.iter().map(target).collect();
            Expr::List(at(node, ast::List { items }))
        }
        other => expression(other),
    }
}

fn call<'a>(node: &Spanned<ast::Call<'a>>) -> Spanned<ast::Call<'a>> {
    let mut args = arguments(&node.args);
    let expr = match &node.expr {
        Expr::GetAttr(attr) if attr.name == "cycle" => {
            args.insert(0, CallArg::Pos(expression(&attr.expr)));
            Expr::Var(at(attr, ast::Var { id: CYCLE }))
        }
        // The callee must stay a variable or attribute: the engine recognises calls by their form.
        Expr::GetAttr(attr) => {
            let value = expression(&attr.expr);
            let value = if FREE_METHODS.contains(&attr.name) { value } else { charged(value) };
            Expr::GetAttr(at(attr, ast::GetAttr { expr: value, name: attr.name }))
        }
        other => expression(other),
    };
    at(node, ast::Call { expr, args })
}

fn arguments<'a>(args: &[CallArg<'a>]) -> Vec<CallArg<'a>> {
    let argument = |arg: &CallArg<'a>| match arg {
        CallArg::Pos(expr) => CallArg::Pos(charged(expression(expr))),
        CallArg::Kwarg(name, expr) => CallArg::Kwarg(name, charged(expression(expr))),
        CallArg::PosSplat(expr) => CallArg::PosSplat(charged(expression(expr))),
        CallArg::KwargSplat(expr) => CallArg::KwargSplat(charged(expression(expr))),
    };
    args.iter().map(argument).collect()
}

fn macro_<'a>(node: &Spanned<ast::Macro<'a>>) -> Spanned<ast::Macro<'a>> {
    at(
        node,
        ast::Macro {
            name: node.name,
            args: node.args.iter().map(target).collect(),
            defaults: node.defaults.iter().map(expression).collect(),
            body: body(&node.body),
        },
    )
}

fn body<'a>(statements: &[Stmt<'a>]) -> Vec<Stmt<'a>> {
    statements.iter().map(statement).collect()
}

/// `expr | __charge`. Constants are free: the template's length limits them.
fn charged(expr: Expr) -> Expr {
    if matches!(expr, Expr::Const(_)) {
        return expr;
    }
    filtered(CHARGE, expr)
}

/// `expr | name`.
fn filtered<'a>(name: &'static str, expr: Expr<'a>) -> Expr<'a> {
    let span = expr.span();
    let filter = ast::Filter { name, expr: Some(expr), args: Vec::new() };
    Expr::Filter(Spanned::new(filter, span))
}

/// `name(left, right)`.
fn function<'a>(name: &'static str, left: Expr<'a>, right: Expr<'a>, span: Span) -> Expr<'a> {
    let callee = Expr::Var(Spanned::new(ast::Var { id: name }, span));
    let args = vec![CallArg::Pos(left), CallArg::Pos(right)];
    Expr::Call(Spanned::new(ast::Call { expr: callee, args }, span))
}

fn empty<'a>(span: Span) -> Stmt<'a> {
    Stmt::Template(Spanned::new(ast::Template { children: Vec::new() }, span))
}

/// A new node with the source position of an old one.
fn at<T, U>(old: &Spanned<T>, new: U) -> Spanned<U> {
    Spanned::new(new, old.span())
}
