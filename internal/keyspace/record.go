package keyspace

import (
	"encoding/binary"
	"unsafe"

	"example.com/raftkv/internal/mix"
)

// A record is a key with its value, revision and hash, as they stand in a chunk: four
// numbers, the key, the value. What follows on it there is not of it. The hash is of
// the key, the value and the revision.
type record string

// recordHead is what comes before the key: revision, hash, and the lengths of key and
// value.
const recordHead = 24

func recordSize(keyLen, valueLen int) int { return recordHead + keyLen + valueLen }

// writeRecord makes a record of so many bytes as recordSize says.
func writeRecord(b, key, value []byte, revision uint64) {
	end := recordHead + copy(b[recordHead:], key)
	end += copy(b[end:], value)
	// The length says where the key ends; the revision goes in with it, so that
	// key and value can be read in one go.
	hash := mix.Long(mix.Uint64(uint64(len(key)), revision), b[recordHead:end])
	binary.LittleEndian.PutUint64(b, revision)
	binary.LittleEndian.PutUint64(b[8:], hash)
	binary.LittleEndian.PutUint32(b[16:], uint32(len(key)))
	binary.LittleEndian.PutUint32(b[20:], uint32(len(value)))
}

// stringOf returns bytes as a string, for as long as they do not change.
func stringOf(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// head returns the numbers of a record.
func (r record) head() []byte {
	return unsafe.Slice(unsafe.StringData(string(r[:recordHead])), recordHead)
}

func (r record) revision() uint64 { return binary.LittleEndian.Uint64(r.head()) }
func (r record) hash() uint64     { return binary.LittleEndian.Uint64(r.head()[8:]) }
func (r record) keyLen() int      { return int(binary.LittleEndian.Uint32(r.head()[16:])) }
func (r record) valueLen() int    { return int(binary.LittleEndian.Uint32(r.head()[20:])) }
func (r record) size() int        { return recordSize(r.keyLen(), r.valueLen()) }
func (r record) key() string      { return string(r[recordHead : recordHead+r.keyLen()]) }

func (r record) item() Item {
	end := recordHead + r.keyLen()
	return Item{Key: string(r[recordHead:end]), Value: string(r[end : end+r.valueLen()]), Revision: r.revision()}
}

// read reads the beginning of a record, which has the numbers and most keys, or in
// steps of a cache line as much of it as is worth it: of a long one the processor
// fetches the rest by itself. What it returns means nothing.
func (r record) read(values bool) (sum uint64) {
	const line, linesMax = 64, 4
	end := recordHead + 1
	if values {
		end = min(r.size(), line*linesMax)
	}
	for at := 0; at < end; at += line {
		sum += uint64(r[at])
	}
	return sum + uint64(r[end-1]) // it need not begin with a line
}
