// Makes the files beside it, with bbolt itself: an independent writer for the reader in src/bolt.rs.
//
//	apt-get install golang-go golang-github-coreos-bbolt-dev
//	GO111MODULE=off GOPATH=/usr/share/gocode go run make.go
package main

import (
	"fmt"
	"os"
	"strings"

	"go.etcd.io/bbolt"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func open(name string, pageSize int) *bbolt.DB {
	os.Remove(name)
	db, err := bbolt.Open(name, 0600, &bbolt.Options{PageSize: pageSize})
	must(err)
	return db
}

// few.db: two records in one page, a bucket that is small enough to stand inside its parent's page.
func few() {
	db := open("few.db", 1024)
	must(db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte("relation"))
		must(err)
		must(b.Put([]byte("default/a"), []byte(`{"one":1}`)))
		return b.Put([]byte("default/b"), []byte(`{"two":2}`))
	}))
	must(db.Close())
}

// many.db: records in many pages, some longer than a page, some changed, some deleted; a bucket inside the bucket, and others beside it.
func many() {
	db := open("many.db", 1024)
	must(db.Update(func(tx *bbolt.Tx) error {
		for _, name := range []string{"another", "relation", "yet another"} {
			_, err := tx.CreateBucketIfNotExists([]byte(name))
			must(err)
		}
		return tx.Bucket([]byte("another")).Put([]byte("default/pod-0001"), []byte("not this one"))
	}))
	for from := 0; from < 150; from += 25 {
		must(db.Update(func(tx *bbolt.Tx) error {
			b := tx.Bucket([]byte("relation"))
			for n := from; n < from+25; n++ {
				must(b.Put([]byte(fmt.Sprintf("default/pod-%04d", n)), []byte("first")))
			}
			return nil
		}))
	}
	must(db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte("relation"))
		for n := 0; n < 150; n++ {
			key := []byte(fmt.Sprintf("default/pod-%04d", n))
			if n%3 == 0 {
				must(b.Delete(key))
				continue
			}
			length := 40
			if n%50 == 1 {
				length = 3000
			}
			must(b.Put(key, []byte(strings.Repeat(string(rune('a'+n%26)), length))))
		}
		inner, err := b.CreateBucket([]byte("default/pod-0000-inner"))
		must(err)
		return inner.Put([]byte("default/pod-0003"), []byte("deeper"))
	}))
	must(db.Close())
}

func main() {
	few()
	many()
}
