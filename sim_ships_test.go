package raftkv

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"testing"
	"testing/cryptotest"
)

// TestSimulatorDrivesWhatShips holds the simulator to its purpose: what it runs is
// the code that Start runs. A process is a node as newNode makes it, its parts
// are wired with each other and nothing of theirs is replaced but the network.
func TestSimulatorDrivesWhatShips(t *testing.T) {
	cryptotest.SetGlobalRandom(t, 1)
	w := newWorld(1, 3, newCounts())
	defer w.close()
	w.plan.foundingFault = 0
	w.found()
	for _, p := range w.procs[:3] {
		n, l := p.n, p.n.loop
		for _, part := range []struct {
			name          string
			have, shipped any
		}{
			{"node", n, (*Node)(nil)}, {"loop", l, (*loop)(nil)}, {"applier", l.fsm, (*fsm)(nil)}, {"log", l.log, (*storage)(nil)},
			{"worker", l.change.worker, newNode(n.cfg).loop.change.worker}, {"tasks", l.tasks, (*taskQueue)(nil)},
		} {
			if have, want := reflect.TypeOf(part.have), reflect.TypeOf(part.shipped); have != want {
				t.Errorf("the %s is a %v, want %v", part.name, have, want)
			}
		}
		if l.fsm != n.fsm || l.tasks != n.tasks || l.out != n.out || l.reads != n.reads || n.fsm.out != n.out || n.fsm.reads != n.reads {
			t.Error("the parts of a node are not wired as newNode does")
		}
		if l.net != transport(p.net) || reflect.TypeOf(newNode(n.cfg).loop.net) != reflect.TypeFor[*grpcTransport]() {
			t.Error("the network is not all that is replaced")
		}
	}
}

// TestSimulatorAddsNothing looks at the simulator's source: it declares no method
// on a type that ships, and replaces no part of a node but the network.
func TestSimulatorAddsNothing(t *testing.T) {
	names, err := filepath.Glob("sim_*_test.go")
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	files := token.NewFileSet()
	own := make(map[string]bool)
	var parsed []*ast.File
	for _, name := range append(names, "sim_test.go") {
		f, err := parser.ParseFile(files, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, f)
		ast.Inspect(f, func(n ast.Node) bool {
			if spec, ok := n.(*ast.TypeSpec); ok {
				own[spec.Name.Name] = true
			}
			return true
		})
	}
	for _, f := range parsed {
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Recv != nil && !own[receiver(n)] {
					t.Errorf("%v: a method on %s, which ships", files.Position(n.Pos()), receiver(n))
				}
			case *ast.AssignStmt:
				for _, to := range n.Lhs {
					if part := partOfNode(to); part != "" && part != "net" {
						t.Errorf("%v: sets %s of a node", files.Position(n.Pos()), part)
					}
				}
			}
			return true
		})
	}
}

func receiver(f *ast.FuncDecl) string {
	t := f.Recv.List[0].Type
	if star, ok := t.(*ast.StarExpr); ok {
		t = star.X
	}
	if id, ok := t.(*ast.Ident); ok {
		return id.Name
	}
	return ""
}

// partOfNode returns the field that an expression like p.n.loop.net ends in, if
// it goes through a node's loop, applier or log.
func partOfNode(e ast.Expr) string {
	s, ok := e.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	switch x := s.X.(type) {
	case *ast.SelectorExpr:
		if x.Sel.Name == "loop" || x.Sel.Name == "fsm" || x.Sel.Name == "log" || x.Sel.Name == "n" {
			return s.Sel.Name
		}
		return partOfNode(x)
	case *ast.Ident:
		if x.Name == "l" && s.Sel.Name == "loop" {
			return s.Sel.Name
		}
	}
	return ""
}
