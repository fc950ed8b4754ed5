package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode"
	"unicode/utf8"
)

// writeJSON writes one object as one line. HTML characters stay as they are:
// the output is for programs and terminals, not for web pages.
func writeJSON(w io.Writer, v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return outputFailure(err)
	}
	_, err := w.Write(b.Bytes())
	return outputFailure(err)
}

func writeText(w io.Writer, format string, args ...any) error {
	_, err := fmt.Fprintf(w, format, args...)
	return outputFailure(err)
}

// outputFailure makes sure that a full disk does not look like success.
func outputFailure(err error) error {
	if err == nil {
		return nil
	}
	return fail(exitFailed, "standard output: %v", err)
}

// jsonBytes is a key or value in JSON: a string when it is UTF-8, otherwise an
// object, so that no byte is lost and nobody mistakes one for the other.
func jsonBytes(b []byte) any {
	if utf8.Valid(b) {
		return string(b)
	}
	return struct {
		Base64 []byte `json:"base64"` // encoding/json writes bytes as base64
	}{b}
}

// quoteIfNeeded leaves a text alone unless it would break the line or the
// column that it stands in, harm the terminal, or look as if it were quoted.
func quoteIfNeeded(b []byte) string {
	s := string(b)
	odd := func(r rune) bool { return !unicode.IsPrint(r) }
	if !utf8.Valid(b) || strings.HasPrefix(s, `"`) || strings.ContainsFunc(s, odd) {
		return strconv.Quote(s)
	}
	return s
}

// grouped writes a number with commas, for columns that people compare.
func grouped(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// cut shortens a text to a width, with a mark, so that a table keeps its shape.
func cut(s string, width int) string {
	if r := []rune(s); len(r) > width {
		return string(r[:width-1]) + "…"
	}
	return s
}

// writeTable writes rows of tab-separated cells with aligned columns.
func writeTable(w io.Writer, rows []string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		if _, err := fmt.Fprintln(t, row); err != nil {
			return outputFailure(err)
		}
	}
	return outputFailure(t.Flush())
}
