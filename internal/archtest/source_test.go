package archtest

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const (
	module = "example.com/raftkv"
	// root is the module's directory as seen from this package.
	root = "../.."
)

// file is a Go file of the module.
type file struct {
	name      string // slash-separated, relative to the root
	test      bool   // a _test.go file
	generated bool
	lines     int
	syntax    *ast.File
	fset      *token.FileSet
	imports   map[string]string // import path to the name that it has here
}

// dir returns the directory of the file's package relative to the root; the root
// package's is ".".
func (f *file) dir() string { return path.Dir(f.name) }

// at formats a complaint about the line of pos.
func (f *file) at(pos token.Pos, format string, args ...any) string {
	line := f.fset.Position(pos).Line
	return fmt.Sprintf("%s:%d: %s", f.name, line, fmt.Sprintf(format, args...))
}

// uses calls found for each mention of a name of the package with that import
// path. It goes by the syntax: a local variable that hides the package's name
// would be taken for it.
func (f *file) uses(importPath string, found func(name string, pos token.Pos)) {
	local, ok := f.imports[importPath]
	if !ok {
		return
	}
	ast.Inspect(f.syntax, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := s.X.(*ast.Ident); ok && x.Name == local {
				found(s.Sel.Name, s.Pos())
			}
		}
		return true
	})
}

func parse(name string, source []byte) (*file, error) {
	f := &file{
		name:    name,
		test:    strings.HasSuffix(name, "_test.go"),
		lines:   bytes.Count(source, []byte("\n")),
		fset:    token.NewFileSet(),
		imports: make(map[string]string),
	}
	var err error
	f.syntax, err = parser.ParseFile(f.fset, name, source,
		parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	f.generated = ast.IsGenerated(f.syntax)
	for _, spec := range f.syntax.Imports {
		importPath, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return nil, err
		}
		f.imports[importPath] = importName(importPath)
		if spec.Name != nil {
			f.imports[importPath] = spec.Name.Name
		}
	}
	return f, nil
}

// importName guesses a package's name from its import path. It is right for the
// packages that the rules ask about.
func importName(importPath string) string {
	base := path.Base(importPath)
	if strings.HasPrefix(base, "v") && strings.Trim(base[1:], "0123456789") == "" {
		base = path.Base(path.Dir(importPath))
	}
	return base
}

// load parses every Go file of the module. It walks the tree itself instead of
// asking the go command, because the test cache notices new and changed files
// only where the test has opened them, and because a package that does not
// compile at the moment can still be read.
func load(t *testing.T) []*file {
	t.Helper()
	var files []*file
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return skipForeign(p, d)
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		source, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		f, err := parse(filepath.ToSlash(name), source)
		if err != nil {
			return err
		}
		files = append(files, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// skipForeign returns fs.SkipDir for the directories that the go command does
// not count to the module.
func skipForeign(dir string, d fs.DirEntry) error {
	if dir == root {
		return nil
	}
	name := d.Name()
	if name == "testdata" || name == "vendor" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") {
		return fs.SkipDir
	}
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
		return fs.SkipDir
	}
	return nil
}
