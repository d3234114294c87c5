package state

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"
	"gotest.tools/v3/golden"
)

// schemaFile is the JSON Schema of documents. After a change of the types,
//
//	go test ./internal/state -run TestSchema -update
//
// makes it anew. See Minor, too.
const schemaFile = "document.schema.json"

// rules are what the schema says beyond the types, by type and name in JSON.
var rules = map[string][]member{
	"Document.version":        {{"const", Version}},
	"Document.minor":          {{"minimum", 0}, {"maximum", Minor}},
	"Document.out_dir":        {absolute},
	"Tree.path":               {absolute},
	"Tree.log":                {absolute},
	"Kernel.modules_prefix":   {oneOf("/lib/modules", "/usr/lib/modules")},
	"Kernel.facts":            {absolute},
	"Package.kind":            {oneOf(KindArchive, KindDeb, KindSource)},
	"Package.digest":          {hexSHA256},
	"Package.doc":             {absolute},
	"Build.status":            {oneOf(Built, Skipped, Failed)},
	"Build.stage":             {oneOf("dkmsbuild", "debextract")},
	"Build.log":               {absolute},
	"Build.archive":           {absolute},
	"Build.archive_digest":    {hexSHA256},
	"Build.seconds":           {{"minimum", 0}},
	"Module.symbols":          {{"minimum", 0}},
	"Module.gpl_symbols":      {{"minimum", 0}},
	"Module.crcs":             {{"minimum", 0}},
	"Module.crc_check":        {oneOf(CRCsCompared, CRCsNone)},
	"Deb.path":                {absolute},
	"Deb.digest":              {hexSHA256},
	"Deb.size":                {{"minimum", 0}},
	"Origin.digest":           {hexSHA256},
	"Index.directory":         {absolute},
	"Index.packages":          {{"minimum", 0}},
	"Index.digest":            {hexSHA256},
	"Audit.root":              {absolute},
	"InstalledKernel.modules": {{"minimum", 0}},
	"InstalledKernel.checked_against": {
		oneOf(AgainstHeaders, AgainstModules, AgainstNothing),
	},
	"InstalledModule.path":  {absolute},
	"InstalledModule.loads": {oneOf(LoadsYes, LoadsNo, LoadsUnknown)},
	"Error.stage":           {oneOf("mkchroot", "dkmsbuild", "debextract", "repoindex", "rmchroot")},
	"Error.kind":            {oneOf(KindFailed, KindUsage, KindInterrupted)},
}

var (
	absolute  = member{"pattern", "^/"}
	hexSHA256 = member{"pattern", "^[0-9a-f]{64}$"}
)

func oneOf(texts ...string) member { return member{"enum", texts} }

// An object keeps its members in order.
type object []member

type member struct {
	name  string
	value any
}

func (o object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		value, err := json.Marshal(m.value)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "%s:%s", strconv.Quote(m.name), value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// schema makes the schema from the types and their comments.
func schema(t *testing.T) []byte {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "state.go", nil, parser.ParseComments)
	assert.NilError(t, err)
	used := map[string]bool{}
	var defs object
	var top object
	ast.Inspect(file, func(n ast.Node) bool {
		decl, ok := n.(*ast.GenDecl)
		if !ok || decl.Tok != token.TYPE {
			return true
		}
		spec := decl.Specs[0].(*ast.TypeSpec)
		body, ok := spec.Type.(*ast.StructType)
		if !ok {
			return true
		}
		o := object{{"description", oneLine(decl.Doc)}, {"type", "object"}}
		o = append(o, fields(t, spec.Name.Name, body, used)...)
		if spec.Name.Name == "Document" {
			top = o
		} else {
			defs = append(defs, member{spec.Name.Name, o})
		}
		return false
	})
	for name := range rules {
		assert.Assert(t, used[name], "the rule of %s is for no field", name)
	}
	all := object{
		{"$schema", "https://json-schema.org/draft/2020-12/schema"},
		{"title", fmt.Sprintf("document of dkms2bin, version %d.%d", Version, Minor)},
	}
	all = append(append(all, top...), member{"$defs", defs})
	raw, err := json.Marshal(all)
	assert.NilError(t, err)
	var b bytes.Buffer
	assert.NilError(t, json.Indent(&b, raw, "", "  "))
	b.WriteByte('\n')
	return b.Bytes()
}

func fields(t *testing.T, of string, body *ast.StructType, used map[string]bool) object {
	t.Helper()
	var properties object
	required := []string{}
	for _, f := range body.Fields.List {
		assert.Equal(t, len(f.Names), 1)
		text, err := strconv.Unquote(f.Tag.Value)
		assert.NilError(t, err)
		name, options, _ := strings.Cut(reflect.StructTag(text).Get("json"), ",")
		if options == "" {
			required = append(required, name)
		}
		var o object
		if words := strings.TrimSpace(oneLine(f.Doc) + " " + oneLine(f.Comment)); words != "" {
			o = append(o, member{"description", words})
		}
		o = append(o, typeOf(t, f.Type)...)
		key := of + "." + name
		used[key] = true
		properties = append(properties, member{name, append(o, rules[key]...)})
	}
	o := object{{"properties", properties}}
	if len(required) > 0 {
		o = append(o, member{"required", required})
	}
	return append(o, member{"additionalProperties", false})
}

func typeOf(t *testing.T, e ast.Expr) object {
	t.Helper()
	switch e := e.(type) {
	case *ast.StarExpr:
		return typeOf(t, e.X)
	case *ast.ArrayType:
		return object{{"type", "array"}, {"items", typeOf(t, e.Elt)}}
	case *ast.SelectorExpr: // time.Time, in UTC
		return object{{"type", "string"}, {"format", "date-time"}, {"pattern", "Z$"}}
	case *ast.Ident:
		switch e.Name {
		case "string":
			return object{{"type", "string"}}
		case "bool":
			return object{{"type", "boolean"}}
		case "int", "int64":
			return object{{"type", "integer"}}
		case "float64":
			return object{{"type", "number"}}
		}
		return object{{"$ref", "#/$defs/" + e.Name}}
	}
	t.Fatalf("a document has a %T, which this test does not know", e)
	return nil
}

func oneLine(c *ast.CommentGroup) string { return strings.Join(strings.Fields(c.Text()), " ") }

func TestSchema(t *testing.T) {
	t.Parallel()
	golden.Assert(t, string(schema(t)), filepath.Join("..", schemaFile))
}

// refused has Debian's validator (python3-jsonschema) look at documents, and returns
// what it says, and of which ones.
func refused(t *testing.T, documents ...string) (says string, which []string) {
	t.Helper()
	args := []string{"--output", "pretty"}
	for _, path := range documents {
		args = append(args, "--instance", path)
	}
	out, err := exec.Command("jsonschema", append(args, schemaFile)...).CombinedOutput()
	good := 0
	for _, path := range documents {
		if strings.Contains(string(out), "===[SUCCESS]===("+path+")===") {
			good++
			continue
		}
		which = append(which, path)
	}
	assert.Equal(t, err == nil, good == len(documents), "%v\n%s", err, out)
	return string(out), which
}

func writeDocument(t *testing.T, raw []byte) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	assert.NilError(t, err)
	_, err = f.Write(raw)
	assert.NilError(t, err)
	assert.NilError(t, f.Close())
	return f.Name()
}

// TestOlderMinor: a document of 1.0 with every field that there was is one of this
// version, for the programs and for the schema.
func TestOlderMinor(t *testing.T) {
	t.Parallel()
	const path = "testdata/1.0.json"
	raw, err := os.ReadFile(path)
	assert.NilError(t, err)
	doc, err := Parse(raw)
	assert.NilError(t, err)
	assert.Equal(t, doc.Minor, 0)
	unset := zero(reflect.ValueOf(*doc), "")
	assert.DeepEqual(t, unset, []string{".minor", ".tree.copies", ".tree.in_place", ".builds.left_out", ".audit"}) // of 1.1

	// Nothing of it is lost.
	again, err := doc.Encode()
	assert.NilError(t, err)
	var before, after map[string]any
	assert.NilError(t, json.Unmarshal(raw, &before))
	assert.NilError(t, json.Unmarshal(again, &after))
	assert.Equal(t, after["minor"], float64(Minor))
	delete(after, "minor")
	assert.DeepEqual(t, after, before)

	says, which := refused(t, path, writeDocument(t, again))
	assert.Assert(t, which == nil, says)
}

// zero lists the fields that are not set. Of a list it is enough when one element has
// a field.
func zero(v reflect.Value, path string) (names []string) {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return []string{path}
		}
		return zero(v.Elem(), path)
	case reflect.Slice:
		for i := range v.Len() {
			missing := zero(v.Index(i), path)
			if i == 0 {
				names = missing
				continue
			}
			names = slices.DeleteFunc(names, func(n string) bool { return !slices.Contains(missing, n) })
		}
		if v.Len() > 0 {
			return names
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			break
		}
		for i := range v.NumField() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			names = append(names, zero(v.Field(i), path+"."+name)...)
		}
		return names
	}
	if v.IsZero() {
		return []string{path}
	}
	return nil
}

// TestSchemaOfEmpty: what is always there has the right type with nothing in it, too.
func TestSchemaOfEmpty(t *testing.T) {
	t.Parallel()
	created := time.Date(2026, 11, 22, 21, 42, 7, 0, time.UTC)
	var files []string
	for _, doc := range []Document{{}, {Tree: &Tree{Path: "/t", Created: created}, Audit: &Audit{Root: "/"}}} {
		raw, err := doc.Encode()
		assert.NilError(t, err)
		files = append(files, writeDocument(t, raw))
	}
	says, which := refused(t, files...)
	assert.Assert(t, which == nil, says)
}

// TestSchemaRefuses: what Parse would not take, and what no program writes.
func TestSchemaRefuses(t *testing.T) {
	t.Parallel()
	good, err := os.ReadFile("testdata/1.0.json")
	assert.NilError(t, err)
	var bad []string
	for _, row := range []struct{ old, new string }{
		{`"version": 1,`, `"version": 2,`},
		{`"version": 1,`, `"version": 1, "minor": 2,`},
		{`"version": 1,`, ``},
		{`"version": 1,`, `"version": 1, "forest": {},`},
		{`"suite": "bookworm"`, `"sweet": "bookworm"`},
		{`"status": "built"`, `"status": "made"`},
		{`"status": "built",`, ``},
		{`"requested": true`, `"requested": "yes"`},
		{`"created": "2026-11-22T21:42:07Z"`, `"created": "2026-11-22T22:42:07+01:00"`},
		{`"path": "/var/cache`, `"path": "var/cache`},
		{`"kind": "failed"`, `"kind": "unlucky"`},
		{`"crcs": 57`, `"crcs": -1`},
	} {
		assert.Assert(t, strings.Contains(string(good), row.old), row.old)
		bad = append(bad, writeDocument(t, []byte(strings.Replace(string(good), row.old, row.new, 1))))
	}
	says, which := refused(t, bad...)
	assert.DeepEqual(t, which, bad)
	assert.Assert(t, strings.Contains(says, "Additional properties are not allowed"), says)
}
