package org.cupola.app;

import android.app.Activity;
import android.os.Bundle;
import android.os.PowerManager;
import android.os.SystemClock;
import android.widget.Button;
import android.widget.EditText;
import android.widget.LinearLayout;
import android.widget.ScrollView;
import android.widget.TextView;
import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.util.Arrays;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

/** One screen: a prompt, and the answer as its tokens come. */
public final class MainActivity extends Activity {
    private static final int MAX_TOKENS = 256;

    private final ExecutorService worker = Executors.newSingleThreadExecutor();
    private volatile boolean isStopping;
    private EditText prompt;
    private Button ask;
    private TextView answer;
    private TextView status;
    private Model model;
    private HuggingFaceTokenizer tokenizer;

    @Override
    protected void onCreate(Bundle state) {
        super.onCreate(state);
        prompt = new EditText(this);
        prompt.setHint("A prompt");
        ask = new Button(this);
        ask.setText("Ask");
        ask.setEnabled(false);
        ask.setOnClickListener(view -> {
            ask.setEnabled(false);
            String text = prompt.getText().toString();
            worker.execute(() -> attempt(() -> answer(text)));
        });
        answer = new TextView(this);
        answer.setTextIsSelectable(true);
        status = new TextView(this);
        status.setText("Loading");
        ScrollView scroll = new ScrollView(this);
        scroll.addView(answer);
        LinearLayout screen = new LinearLayout(this);
        screen.setOrientation(LinearLayout.VERTICAL);
        screen.setFitsSystemWindows(true);
        screen.addView(prompt);
        screen.addView(ask);
        screen.addView(status);
        screen.addView(scroll);
        setContentView(screen);
        worker.execute(() -> attempt(this::load));
    }

    @Override
    protected void onDestroy() {
        isStopping = true;
        worker.execute(() -> {
            if (model != null) {
                model.close();
            }
        });
        worker.shutdown();
        super.onDestroy();
    }

    private interface Work {
        void run() throws Exception;
    }

    /** Runs it; shows what went wrong. */
    private void attempt(Work work) {
        try {
            work.run();
        } catch (Exception | LinkageError error) {
            show(error.toString());
        }
    }

    private void show(String text) {
        runOnUiThread(() -> status.setText(text));
    }

    private static double secondsSince(long start) {
        return (SystemClock.elapsedRealtime() - start) / 1000.0;
    }

    private void load() throws Exception {
        long start = SystemClock.elapsedRealtime();
        File folder = unpack();
        double unpacked = secondsSince(start);
        // Prompts have the model's special tokens already, and are never cut in silence.
        tokenizer = HuggingFaceTokenizer.newInstance(
                new File(folder, "tokenizer.json").toPath(),
                Map.of("addSpecialTokens", Prompt.HAS_SPECIAL_TOKENS ? "false" : "true", "truncation", "false", "padding", "false"));
        model = new Model(folder, 0);
        String target = model.target();
        show(String.format(Locale.ROOT, "%s: ready after %.2f s, %.2f of them for unpacking", target, secondsSince(start), unpacked));
        runOnUiThread(() -> ask.setEnabled(true));
    }

    /** The artifact as files, which weights are mapped from: copied out of the APK after each installation. */
    private File unpack() throws Exception {
        File folder = new File(getFilesDir(), "artifact");
        long installed = getPackageManager().getPackageInfo(getPackageName(), 0).lastUpdateTime;
        File mark = new File(getFilesDir(), "unpacked-" + installed);
        if (mark.exists()) {
            return folder;
        }
        for (File old : getFilesDir().listFiles((directory, name) -> name.startsWith("unpacked-"))) {
            old.delete();
        }
        folder.mkdirs();
        for (String name : getAssets().list("artifact")) {
            copy("artifact/" + name, new File(folder, name));
        }
        if (!mark.createNewFile()) {
            throw new IOException("can't write to " + mark);
        }
        return folder;
    }

    private void copy(String asset, File file) throws IOException {
        byte[] buffer = new byte[1 << 20];
        try (InputStream in = getAssets().open(asset);
                OutputStream out = new FileOutputStream(file)) {
            for (int count = in.read(buffer); count > 0; count = in.read(buffer)) {
                out.write(buffer, 0, count);
            }
        }
    }

    private void answer(String text) {
        long[] ids = tokenizer.encode(Prompt.of(text)).getIds();
        int[] tokens = Arrays.stream(ids).mapToInt(id -> (int) id).toArray();
        long[] found = new long[MAX_TOKENS];
        int[] count = {0};
        double[] first = {0};
        model.savePower(getSystemService(PowerManager.class).isPowerSaveMode());
        long start = SystemClock.elapsedRealtime();
        try {
            model.answer(tokens, MAX_TOKENS, token -> {
                if (count[0] == 0) {
                    first[0] = secondsSince(start);
                }
                found[count[0]++] = token;
                String said = tokenizer.decode(Arrays.copyOf(found, count[0]), true);
                runOnUiThread(() -> answer.setText(said));
                return !isStopping && count[0] < MAX_TOKENS;
            });
            double seconds = secondsSince(start);
            show(String.format(Locale.ROOT, "%d tokens of prompt; first token after %.2f s, %d in %.2f s", tokens.length, first[0], count[0], seconds));
        } finally {
            runOnUiThread(() -> ask.setEnabled(true));
        }
    }
}
