// Runs Segment's library for Go: sdk-go NAME URL KEY. As sdk_segment.py: calls as JSON come in, one a line, and one line of JSON goes
// out, with the numbers of what the library said was delivered and of what it gave up.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/segmentio/analytics-go/v3"
)

type call struct {
	N         int            `json:"n"`
	Call      string         `json:"call"`
	Body      map[string]any `json:"body"`
	User      string         `json:"user"`
	Anonymous string         `json:"anonymous"`
	Previous  string         `json:"previous"`
	Event     string         `json:"event"`
	Name      string         `json:"name"`
	Group     string         `json:"group"`
	Pause     float64        `json:"pause"`
}

// outcomes is what the library calls for every message that it is done with.
type outcomes struct {
	lock              sync.Mutex
	Delivered, Failed []int
}

func numberOf(message analytics.Message) int {
	var context *analytics.Context
	switch m := message.(type) {
	case analytics.Track:
		context = m.Context
	case analytics.Identify:
		context = m.Context
	case analytics.Page:
		context = m.Context
	case analytics.Screen:
		context = m.Context
	case analytics.Group:
		context = m.Context
	case analytics.Alias:
		context = m.Context
	}
	return context.Extra["n"].(int)
}

func (o *outcomes) Success(message analytics.Message) {
	o.lock.Lock()
	defer o.lock.Unlock()
	o.Delivered = append(o.Delivered, numberOf(message))
}

func (o *outcomes) Failure(message analytics.Message, err error) {
	o.lock.Lock()
	defer o.lock.Unlock()
	o.Failed = append(o.Failed, numberOf(message))
}

func (o *outcomes) count() int {
	o.lock.Lock()
	defer o.lock.Unlock()
	return len(o.Delivered) + len(o.Failed)
}

func messageOf(c call) analytics.Message {
	context := &analytics.Context{Extra: map[string]any{"n": c.N}}
	switch c.Call {
	case "track":
		return analytics.Track{UserId: c.User, AnonymousId: c.Anonymous, Event: c.Event, Properties: c.Body, Context: context}
	case "identify":
		return analytics.Identify{UserId: c.User, AnonymousId: c.Anonymous, Traits: c.Body, Context: context}
	case "group":
		return analytics.Group{UserId: c.User, AnonymousId: c.Anonymous, GroupId: c.Group, Traits: c.Body, Context: context}
	case "alias":
		return analytics.Alias{UserId: c.User, PreviousId: c.Previous, Context: context}
	case "page":
		return analytics.Page{UserId: c.User, AnonymousId: c.Anonymous, Name: c.Name, Properties: c.Body, Context: context}
	default:
		return analytics.Screen{UserId: c.User, AnonymousId: c.Anonymous, Name: c.Name, Properties: c.Body, Context: context}
	}
}

func main() {
	told := &outcomes{Delivered: []int{}, Failed: []int{}}
	client, err := analytics.NewWithConfig(os.Args[3], analytics.Config{
		Endpoint: os.Args[2], Callback: told, BatchSize: 20, Interval: 200 * time.Millisecond,
	})
	if err != nil {
		panic(err)
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<24)
	sent := 0
	for lines.Scan() {
		var c call
		decoder := json.NewDecoder(strings.NewReader(lines.Text()))
		// Numbers keep their digits.
		decoder.UseNumber()
		if err := decoder.Decode(&c); err != nil {
			panic(err)
		}
		if err := client.Enqueue(messageOf(c)); err != nil {
			panic(err)
		}
		sent++
		time.Sleep(time.Duration(c.Pause * float64(time.Second)))
	}
	// Closing it would give up whatever waits to be sent again.
	for deadline := time.Now().Add(120 * time.Second); told.count() < sent && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	if err := client.Close(); err != nil {
		panic(err)
	}
	told.lock.Lock()
	defer told.lock.Unlock()
	line, err := json.Marshal(map[string][]int{"delivered": told.Delivered, "failed": told.Failed})
	if err != nil {
		panic(err)
	}
	fmt.Println(string(line))
}
