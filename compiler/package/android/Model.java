package org.cupola.app;

import java.io.File;

/** A model: token ids in, the likeliest tokens out. For one thread, other than the one of the screen. */
public final class Model implements AutoCloseable {
    /** Hears each token as it comes. */
    public interface Listener {
        /** Returns whether to go on. */
        boolean onToken(int token);
    }

    private long address;

    /**
     * Opens an artifact's folder.
     *
     * @param numThreads 0 takes as many as there are fast cores
     * @throws IllegalStateException if it can't be opened, with the cause
     */
    public Model(File folder, int numThreads) {
        address = Native.openModel(folder.getPath(), numThreads);
    }

    /** The target whose library was chosen, such as cpu:dotprod@android. */
    public String target() {
        return Native.target(address);
    }

    /** Tokens that a prompt and its answer may have. */
    public int context() {
        return Native.context(address);
    }

    /** Lets threads sleep while they wait for each other: slower, and easier on the battery. */
    public void savePower(boolean isOn) {
        Native.savePower(address, isOn);
    }

    /**
     * Answers a prompt until the model ends the answer, the listener does, or it has `limit` tokens or the context is full.
     *
     * @throws IllegalStateException if the prompt is too long, or the model fails
     */
    public void answer(int[] prompt, int limit, Listener listener) {
        int most = Math.min(context(), prompt.length + limit);
        long session = Native.openSession(address, most);
        try {
            int[] fed = prompt;
            int length = prompt.length;
            do {
                int token = Native.next(address, session, fed);
                if (token < 0 || !listener.onToken(token)) {
                    return;
                }
                fed = new int[] {token};
            } while (++length < most);
        } finally {
            Native.closeSession(session);
        }
    }

    @Override
    public void close() {
        Native.closeModel(address);
        address = 0;
    }
}
