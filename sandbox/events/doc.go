// Package events hands news to subscribers, each through a queue of its own.
//
// It owns the queues and knows nothing of what travels in them. Publish never waits: the queue of a subscriber that does not keep
// up is dropped as a whole when it is full, and Next tells that one ErrSlow. It then knows that it missed something, asks for
// the state anew and subscribes again. No subscriber notices another.
//
// Invariant: what is published after Subscribe returned comes from Next once and in the order of publishing, or Next fails.
//
// Concurrency: everything is safe, but for Next, of which one call at a time may be under way for a subscription. Lock order:
// Broadcaster.mu, then Subscription.mu; neither is held while anybody waits.
package events
