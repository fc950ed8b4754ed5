package history

import "strings"

// covers reports whether a List would show a key if there were such a key.
func (o *operation) covers(key string) bool {
	if !strings.HasPrefix(key, o.Key) || key <= o.After && o.After != "" {
		return false
	}
	n := len(o.result.Items)
	return o.Limit == 0 || n < o.Limit || key <= o.result.Items[n-1].Key
}

// checkLists holds every List to what is known of the keys at its revision.
func (c *checker) checkLists() {
	shows := make([]int, len(c.keys)) // by key: the last List that shows it, from 1
	for i := range c.ops {
		o := &c.ops[i]
		if o.Kind != List || c.effect[i] == dropped {
			continue
		}
		for n, item := range o.result.Items {
			if !o.covers(item.Key) || n > 0 && item.Key <= o.result.Items[n-1].Key || o.Limit > 0 && n >= o.Limit {
				c.violation([]int32{int32(i)}, "a List shows key %.64q, which is out of order or out of its range", item.Key)
			}
			if item.Revision > o.result.Revision {
				c.violation([]int32{int32(i)}, "a List at revision %d shows key %.64q at revision %d", o.result.Revision, item.Key, item.Revision)
			}
			id, ok := c.keyIDs[item.Key]
			if !ok {
				continue // the past of a key that was gone before the history begins
			}
			shows[id] = i + 1
			c.wantSet(&c.keys[id], int32(i), item.Revision, evidence{o.result.Revision, -1})
		}
		for id := range c.keys {
			if shows[id] != i+1 && o.covers(c.keys[id].name) {
				c.wantAbsent(&c.keys[id], int32(i), o.result.Revision)
			}
		}
	}
}
