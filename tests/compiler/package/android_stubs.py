"""Declarations of what an app's screen uses of Android and DJL, each as its documentation has it."""

STUBS = {
    "android.content.Context": """abstract class Context {
    public java.io.File getFilesDir() { return null; }
    public android.content.res.AssetManager getAssets() { return null; }
    public android.content.pm.PackageManager getPackageManager() { return null; }
    public String getPackageName() { return null; }
    public final <T> T getSystemService(Class<T> kind) { return null; }
}""",
    "android.content.res.AssetManager": """final class AssetManager {
    public String[] list(String path) throws java.io.IOException { return null; }
    public java.io.InputStream open(String name) throws java.io.IOException { return null; }
}""",
    "android.content.pm.PackageInfo": "class PackageInfo { public long lastUpdateTime; }",
    "android.content.pm.PackageManager": """abstract class PackageManager {
    @SuppressWarnings("serial")
    public static class NameNotFoundException extends Exception {}
    public abstract PackageInfo getPackageInfo(String name, int flags) throws NameNotFoundException;
}""",
    "android.app.Activity": """class Activity extends android.content.Context {
    protected void onCreate(android.os.Bundle state) {}
    protected void onDestroy() {}
    public void setContentView(android.view.View view) {}
    public final void runOnUiThread(Runnable action) {}
}""",
    "android.os.Bundle": "final class Bundle {}",
    "android.os.PowerManager": "final class PowerManager { public boolean isPowerSaveMode() { return false; } }",
    "android.os.SystemClock": "final class SystemClock { public static long elapsedRealtime() { return 0; } }",
    "android.view.View": """class View {
    public interface OnClickListener { void onClick(View view); }
    public void setOnClickListener(OnClickListener listener) {}
    public void setEnabled(boolean enabled) {}
    public void setFitsSystemWindows(boolean fits) {}
}""",
    "android.view.ViewGroup": "abstract class ViewGroup extends View { public void addView(View child) {} }",
    "android.text.Editable": "interface Editable extends CharSequence {}",
    "android.widget.TextView": """class TextView extends android.view.View {
    public TextView(android.content.Context context) {}
    public final void setText(CharSequence text) {}
    public final void setHint(CharSequence text) {}
    public void setEnabled(boolean enabled) {}
    public void setTextIsSelectable(boolean selectable) {}
    public CharSequence getText() { return null; }
}""",
    "android.widget.EditText": """class EditText extends TextView {
    public EditText(android.content.Context context) { super(context); }
    public android.text.Editable getText() { return null; }
}""",
    "android.widget.Button": "class Button extends TextView { public Button(android.content.Context context) { super(context); } }",
    "android.widget.LinearLayout": """class LinearLayout extends android.view.ViewGroup {
    public static final int VERTICAL = 1;
    public LinearLayout(android.content.Context context) {}
    public void setOrientation(int orientation) {}
}""",
    "android.widget.ScrollView": """class ScrollView extends android.view.ViewGroup {
    public ScrollView(android.content.Context context) {}
}""",
    "ai.djl.huggingface.tokenizers.Encoding": "class Encoding { public long[] getIds() { return null; } }",
    "ai.djl.huggingface.tokenizers.HuggingFaceTokenizer": """final class HuggingFaceTokenizer implements AutoCloseable {
    public static HuggingFaceTokenizer newInstance(java.nio.file.Path path, java.util.Map<String, String> options)
            throws java.io.IOException { return null; }
    public Encoding encode(String text) { return null; }
    public String decode(long[] ids, boolean skipSpecialTokens) { return null; }
    @Override public void close() {}
}""",
}
