package org.cupola.app;

/** The functions of jni.c. Those that fail throw IllegalStateException. */
final class Native {
    static {
        System.loadLibrary("app");
    }

    private Native() {}

    static native long openModel(String folder, int numThreads);

    static native void closeModel(long model);

    static native String target(long model);

    static native int context(long model);

    static native void savePower(long model, boolean isOn);

    static native long openSession(long model, int maxTokens);

    static native void closeSession(long session);

    static native int next(long model, long session, int[] tokens);
}
