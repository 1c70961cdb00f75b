package org.cupola.app;

/** The text around what the user says. @ABOUT@ */
final class Prompt {
    static final boolean HAS_SPECIAL_TOKENS = @HAS_SPECIAL_TOKENS@;

    private Prompt() {}

    static String of(String text) {
        return @BEFORE@ + text + @AFTER@;
    }
}
